"""Makes the trial stages importable, here and in the workers of whatever Ray is started later."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGES = str(Path(__file__).parent / "packages")
sys.path.append(PACKAGES)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), PACKAGES]))
