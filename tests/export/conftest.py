"""The fakes of `engine_fakes.py` can be imported by the tests here, and by the processes that they start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
