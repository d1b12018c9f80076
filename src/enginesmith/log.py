"""The project's one logger. An application sets handlers and level as with any other."""

from __future__ import annotations

import logging

from enginesmith.knobs import knobs

logger = logging.getLogger("enginesmith")
_level = logging.getLevelName(knobs().log.upper())
logger.setLevel(_level)
if _level < logging.WARNING:
    # Asked for by ENGINESMITH_LOG, and Python shows warnings alone where no handler is set.
    logger.addHandler(logging.StreamHandler())
