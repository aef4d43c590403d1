def training_sides(image_size: int, multi_scale: float) -> list[int]:
    """The sides, in pixels, that a batch may have in training.

    Args:
        image_size: S.
        multi_scale: f. 0: the side is S. Otherwise the sides are the multiples of 32 in
            S * (1 - f) to S * (1 + f).
    """
    if multi_scale == 0:
        return [image_size]
    if not 0 <= multi_scale < 1:
        raise ValueError(f"INPUT.MULTI_SCALE is {multi_scale}, not in 0 <= f < 1")
    low, high = (round(image_size * (1 + f), 6) for f in (-multi_scale, multi_scale))
    sides = [side for side in range(32, int(high) + 1, 32) if side >= low]
    if not sides:
        raise ValueError(
            f"INPUT.MULTI_SCALE is {multi_scale}: there is no multiple of 32 in {low:g} to "
            f"{high:g}, use a larger fraction"
        )
    return sides
