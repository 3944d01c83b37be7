"""The parts that a config names and methods share: decoder, transition.

Axes: h w the map's locations.
"""

from torch import nn

from dias_lab.modules.conditioning import positions
from dias_lab.modules.decoder import MLPDecoder, RandomOrderDecoder
from dias_lab.modules.frames import FramedDecoder, FramedRandomOrderDecoder
from dias_lab.modules.permuted import PermutedDecoder
from dias_lab.modules.projector import zero_biases
from dias_lab.modules.transition import RSFQ, EncoderTransition, Identity


def build_decoder(config, feature_dim: int, grid: tuple[int, int]) -> nn.Module:
    """The decoder that `config.decoder` names, for maps of `grid` (h, w) locations; it starts as `config` says."""
    num_locations, size = grid[0] * grid[1], (config.decoder_layers, config.decoder_heads, config.decoder_mlp_dim)
    shown = config.visible_probability, config.visible_fraction, config.evaluation_visible
    if config.decoder_locations > num_locations:
        raise ValueError(
            f"decoder_locations is {config.decoder_locations}, and the feature map has {num_locations} locations: "
            "take at most so many, or 0 for all"
        )
    if config.slot_frames:
        hidden = config.decoder_mlp_dim or 64
        if config.decoder == "mlp":
            decoder = FramedDecoder(feature_dim, config.slot_dim, grid, hidden, config.decoder_locations)
        else:
            decoder = FramedRandomOrderDecoder(feature_dim, config.slot_dim, grid, hidden, config.decoder_heads, *shown)
        zero_biases(decoder)  # with torch's it does not learn on toys (docs/learning.md)
        return decoder
    if config.decoder == "mlp":
        widths = config.decoder_layers, config.decoder_mlp_dim or 2048
        decoder = MLPDecoder(feature_dim, config.slot_dim, num_locations, *widths, config.decoder_locations)
        if config.decoder_start == "lookup":
            decoder.start_as_lookup(positions(grid), config.position_weight)
        return decoder
    if config.decoder == "raster":
        decoder = PermutedDecoder(feature_dim, config.slot_dim, grid, *size, num_permutations=1, dim=config.decoder_dim)
    else:
        decoder = RandomOrderDecoder(feature_dim, config.slot_dim, num_locations, *size, *shown)
    if config.decoder_start == "lookup":
        decoder.start_as_lookup()
    return decoder


def build_transition(config, feature_dim: int) -> nn.Module:
    """The predictor that `config.transition` names, for projected features of so many channels."""
    sizes = config.transition_heads, config.slot_mlp_dim, config.transition_dropout
    if config.transition == "rsfq":
        return RSFQ(config.slot_dim, feature_dim, config.transition_frames, *sizes)
    return EncoderTransition(config.slot_dim, *sizes) if config.transition == "encoder" else Identity()
