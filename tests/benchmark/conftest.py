import sys

from plain import CONFIGS

# tools/ is a package of the clone, not of the installed project.
sys.path.insert(0, str(CONFIGS.parent))
