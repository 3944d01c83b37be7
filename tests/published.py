"""What the tests of published weights share: measured states, and the numbers that were measured on them."""

import numpy as np
import torch

from dias_lab.modules.aggregator import SlotAttention

ORDERS = [  # the nine orders of SPOT, on a map of 4x4
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15],
    [3, 7, 11, 15, 2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12],
    [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12],
    [15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0],
    [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    [12, 8, 4, 0, 13, 9, 5, 1, 14, 10, 6, 2, 15, 11, 7, 3],
    [12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3],
    [5, 9, 10, 6, 2, 1, 0, 4, 8, 12, 13, 14, 15, 11, 7, 3],
]


def measured(state, *parts):
    """The state in which the reference's numbers were measured: value .2 sin(.7 i + rank of the name), plus 1 for norms."""
    for part in parts:
        for rank, name in enumerate(sorted(name for name in state if name.startswith(part))):
            if state[name].is_floating_point():
                values = 0.2 * torch.sin(0.7 * torch.arange(state[name].numel(), dtype=torch.float64) + rank)
                plus = name.endswith("weight") and ("norm" in name or state[name].ndim == 1)
                state[name] = (values.view(state[name].shape) + plus).float()
    return state


def wave(*shape, phase=0):
    return torch.sin(0.37 * torch.arange(np.prod(shape), dtype=torch.float64) + phase).view(shape).float()


def close(tensor, *values):
    torch.testing.assert_close(tensor.flatten(), torch.tensor(values), atol=1e-4, rtol=1e-4)


# What the reference calls the parts of Slot Attention: the order of the names decides their measured state
SLOT_ATTENTION_NAMES = {
    "norm_slots": "norm1q", "to_query": "proj_q", "norm_features": "norm1kv", "to_key": "proj_k", "to_value": "proj_v",
    "gru": "rnn", "norm_mlp": "norm2", "mlp": "ffn",
}  # fmt: skip


def load_measured(module, names):
    """The module in the state in which the reference's numbers were measured. `names`: what it calls which part."""

    def reference_name(name):
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    state = module.state_dict()
    theirs = measured({reference_name(name): value for name, value in state.items()}, "")
    module.load_state_dict({name: theirs[reference_name(name)] for name in state})
    return module.eval()


def measured_slot_attention():
    """Slot Attention in that state, features [2 16 12], slots [2 3 8]."""
    model = load_measured(SlotAttention(12, 8, 16, 3), SLOT_ATTENTION_NAMES)
    return model, wave(2, 16, 12), wave(2, 3, 8, phase=1)


# The numbers of models for videos were measured in another state, in double precision


def swell(*shape, phase=0.0):
    i = torch.arange(np.prod(shape), dtype=torch.float64)
    return torch.sin(0.37 * i + phase + 0.011 * i * i).view(shape)


def swollen(shapes):
    """Name -> values for names and shapes of the reference: (.8, fewer than two axes .5) sin(.7 i + rank + .013 i^2), plus 1 for norms."""
    state = {}
    for rank, name in enumerate(sorted(shapes)):
        shape = torch.Size(shapes[name])
        i = torch.arange(shape.numel(), dtype=torch.float64)
        values = (0.5 if len(shape) < 2 else 0.8) * torch.sin(0.7 * i + rank + 0.013 * i * i)
        state[name] = (values + (len(shape) == 1 and name.endswith("weight"))).view(shape)
    return state


def load_swollen(module, theirs, more=()):
    """The module in that state, in evaluation mode. `theirs(name)`: the reference's name of ours; `more`: names it has besides."""
    own = {name: theirs(name) for name in module.state_dict()}
    shapes = {own[name]: value.shape for name, value in module.state_dict().items()} | dict.fromkeys(more, ())
    state = swollen(shapes)
    module.double().load_state_dict({name: state[own[name]] for name in own})
    return module.eval()


def near(tensor, total, absolute, first, last):
    """Sum, sum of absolute values (None: fixed by a softmax), and the first and last four entries, to 1e-4 of the largest."""
    tensor = tensor.detach()
    tolerance = 1e-4 * max(float(tensor.abs().max()), 1e-3)
    for value, sum_of in ((total, tensor), (absolute, tensor.abs())):
        assert value is None or abs(float(sum_of.sum()) - value) < tolerance * tensor.numel() ** 0.5
    for values, place in ((first, slice(4)), (last, slice(-4, None))):
        expected = torch.tensor([float(value) for value in values.split()], dtype=tensor.dtype)
        torch.testing.assert_close(tensor.flatten()[place], expected, atol=tolerance, rtol=0)


def near_rows(output, table: str):
    """`near` for fields of an output; a row each: name, sum and sum of absolute values (or -) | first four | last four.

    Of the attention maps it is the last iteration's.
    """
    for row in table.strip().splitlines():
        sums, first, last = row.split("|")
        name, *sums = sums.split()
        value = getattr(output, name)
        near(value[-1] if name == "attention" else value, *(None if one == "-" else float(one) for one in sums), first, last)
