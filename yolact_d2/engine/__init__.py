from .launch import check_launch, launch
from .watch import watch_ranks
