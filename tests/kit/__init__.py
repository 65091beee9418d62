"""What tests share: processes, servers, peers and models that several of them start or drive."""

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
DATA: Final = ROOT / "tests" / "data"
EXAMPLES = int(os.environ.get("ARENDEZVOUS_EXAMPLES", "12"))
"""How many random scenarios a test of features that meet plays; more take minutes."""
