from .criterion import EmbedMaskCriterion
from .embedmask import EmbedMask
from .head import EmbedMaskHead, EmbedMaskPredictions
