"""The project's one logger. ENGINESMITH_LOG sets its level; an application may set handlers
itself.
"""

from __future__ import annotations

import logging

from enginesmith.knobs import knobs

logger = logging.getLogger("enginesmith")
logger.setLevel(knobs().log.upper())
