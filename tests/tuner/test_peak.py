"""The peak meter measures something plausible."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginesmith.plan.target import ISAS, Target
from enginesmith.runtime.devices.host import host_isas
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.peak import measure_peak


@pytest.mark.parametrize("isa", ISAS)
def test_rates_are_those_of_a_computer(isa: str, artifact_cache: Path) -> None:
    """Wide bounds: a core does 4 to 500 GFLOP/s and copies 0.2 to 500 GB/s."""
    if isa not in host_isas():
        pytest.skip(f"this machine has no {isa}")
    peak = measure_peak(Target("cpu", isa), 2, ArtifactCache(artifact_cache), seconds=0.02)
    assert peak.threads == 2
    assert 4 < peak.gflops < 1000
    assert 0.2 < peak.gbps < 1000
