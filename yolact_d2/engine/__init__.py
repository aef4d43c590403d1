from .launch import check_launch, launch
from .statistics import share_statistics
from .watch import watch_ranks
