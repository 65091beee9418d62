"""What tests share: processes, servers, peers and models that several of them start or drive."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
DATA: Final = ROOT / "tests" / "data"
