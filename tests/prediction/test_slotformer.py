"""SlotFormer: the published computation to 1e-4, time that counts backwards, slots without positions, slots that are left out."""

import math

import pytest
import torch
from torch import nn

from dias_lab.prediction.slotformer import SlotFormer, from_published, time_positions

D, N, T, H = 8, 3, 4, 16


def wave(shape, phase):
    """The reference's inputs: sin(0.37 i + phase + 0.011 i^2) over the flat index i."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.37 * i + phase + 0.011 * i * i).view(shape)


def published() -> dict:
    """The reference's fixture: weights under SlotFormer's published names, filled by rule from their sorted names."""
    layer = {
        "self_attn.in_proj_weight": (3 * H, H), "self_attn.in_proj_bias": (3 * H,), "self_attn.out_proj.weight": (H, H),
        "self_attn.out_proj.bias": (H,), "linear1.weight": (32, H), "linear1.bias": (32,), "linear2.weight": (H, 32), "linear2.bias": (H,),
        "norm1.weight": (H,), "norm1.bias": (H,), "norm2.weight": (H,), "norm2.bias": (H,),
    }  # fmt: skip
    shapes = {"enc_t_pe": (1, T, H), "in_proj.weight": (H, D), "in_proj.bias": (H,), "out_proj.weight": (D, H), "out_proj.bias": (D,)}
    shapes |= {f"transformer_encoder.layers.{k}.{name}": shape for k in range(2) for name, shape in layer.items()}
    state = {}
    for rank, (name, shape) in enumerate(sorted(shapes.items())):
        i = torch.arange(math.prod(shape), dtype=torch.float64)
        value = (0.5 if len(shape) < 2 else 0.3) * torch.sin(0.7 * i + rank + 0.013 * i * i)
        state[f"rollouter.{name}"] = (value + (len(shape) == 1 and name.endswith("weight"))).view(shape)
    return state | {"rollouter.enc_t_pe": time_positions(T, H).double()[None]}


@pytest.fixture
def former():
    torch.set_default_dtype(torch.float64)
    yield from_published(published(), num_heads=4)
    torch.set_default_dtype(torch.float32)


def check(tensor, total, absolute, first, last):
    assert tensor.sum().item() == pytest.approx(total, abs=1e-4)
    assert tensor.abs().sum().item() == pytest.approx(absolute, abs=1e-4)
    flat = tensor.flatten().tolist()
    assert flat[:4] == pytest.approx(first, abs=1e-4) and flat[-4:] == pytest.approx(last, abs=1e-4)


def test_it_is_the_published_rollouter(former):
    with torch.no_grad():
        rolled = former(wave((2, T, N, D), 1), 3)
    check(rolled, 9.013680, 230.709209, [-3.257804, 0.177044, 2.485334, 1.761149], [1.269151, -0.062729, -0.151252, 1.801863])
    check(rolled[:, 0], 15.901778, 100.327420, [-3.257804, 0.177044, 2.485334, 1.761149], [2.263943, 2.186495, -1.370263, -0.755908])


def test_time_counts_backwards():
    table = time_positions(T, H).double()
    assert table[-1].tolist() == [0] * 8 + [1] * 8  # the newest
    assert table[0, :4].tolist() == pytest.approx([0.14112, 0.812649, 0.29552, 0.094726], abs=1e-5)
    torch.testing.assert_close(time_positions(6, H)[-T:].double(), table)  # whatever the burn-in


def test_slots_have_no_positions_and_frames_do(former):
    slots = wave((2, T, N, D), 1)
    with torch.no_grad():
        torch.testing.assert_close(former(slots.flip(2), 3), former(slots, 3).flip(2))
        assert (former(slots.flip(1), 1) - former(slots, 1)).abs().max() > 0.1


def test_a_rollout_is_teacher_forcing_on_its_first_step_and_then_feeds_on_itself(former):
    slots = wave((2, T + 2, N, D), 1)
    with torch.no_grad():
        rolled = former(slots[:, :T], 2)
        torch.testing.assert_close(rolled[:, :1], former(slots[:, :T], 1))
        torch.testing.assert_close(rolled[:, 1:], former(torch.cat([slots[:, 1:T], rolled[:, :1]], 1), 1))
        assert (rolled[:, 1:] - former(slots[:, 1 : T + 1], 1)).abs().max() > 0.01  # the true frame would give something else


def test_slots_left_out_are_seen_by_nobody_and_stay_as_they_were(former):
    slots, keep = wave((2, T, N, D), 1), torch.tensor([[True, False, True], [True, True, True]])
    other = slots.clone()
    other[0, :, 1] += 5
    with torch.no_grad():
        rolled, alone = former(slots, 3, keep), former(slots[:1, :, [0, 2]], 3)
        torch.testing.assert_close(rolled[:1, :, [0, 2]], alone)
        torch.testing.assert_close(rolled[0, :, 1], slots[0, -1:, 1].expand(3, -1))
        torch.testing.assert_close(former(other, 3, keep)[0, :, [0, 2]], rolled[0, :, [0, 2]])
        torch.testing.assert_close(rolled[1:], former(slots[1:], 3))
        nobody = former(slots, 2, torch.zeros_like(keep))
    torch.testing.assert_close(nobody, slots[:, -1:].expand_as(nobody))


def test_gradients_go_through_the_whole_rollout(former):
    slots = wave((1, T, N, D), 1).requires_grad_()
    former(slots, 6)[:, -1].sum().backward()
    assert slots.grad.abs().sum(dim=(0, 2, 3)).min() > 0  # by way of the predictions alone


def test_it_learns_how_things_move():
    torch.manual_seed(0)
    model = SlotFormer(4, 3, 32, 1, 4, 64, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def moving() -> torch.Tensor:  # things that go straight on, [B F N D]: place and velocity hidden in the difference
        start, velocity = torch.randn(32, 1, 2, 4), torch.randn(32, 1, 2, 4)
        return start + 0.3 * velocity * torch.arange(6).view(1, 6, 1, 1)

    for _ in range(150):
        clips = moving()
        loss = (model(clips[:, :3], 3) - clips[:, 3:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clips = moving()
    with torch.no_grad():
        error = (model(clips[:, :3], 3) - clips[:, 3:]).square().mean()
    assert error < 0.5 * (clips[:, 2:3] - clips[:, 3:]).square().mean()  # copying


def test_a_step_that_is_added_starts_from_the_newest_slots():
    torch.manual_seed(0)
    model, slots = SlotFormer(D, T, H, 1, 4, 32, residual=True).eval(), torch.randn(2, T, N, D)
    torch.testing.assert_close(model(slots, 3), slots[:, -1:].expand(-1, 3, -1, -1))
    nn.init.ones_(model.to_slot.bias)
    torch.testing.assert_close(model(slots, 3), slots[:, -1:] + torch.arange(1.0, 4).view(1, 3, 1, 1))


def test_standardising_changes_no_unit():
    torch.manual_seed(0)
    model, slots = SlotFormer(D, T, H, 1, 4, 32).eval(), 5 * torch.randn(2, T, N, D) + 3
    slots[..., 0] = 2.0  # the same throughout
    plain = model(model.standardised(slots), 2)
    model.fit(slots.flatten(0, 2))
    torch.testing.assert_close(model.standardised(slots).mean(dim=(0, 1, 2)), torch.zeros(D), atol=1e-5, rtol=0)
    assert model.standardised(slots)[..., 1:].std() == pytest.approx(1, abs=0.02) and model.deviation[0] == 1
    changed = SlotFormer(D, T, H, 1, 4, 32).eval()
    changed.load_state_dict(model.state_dict() | {"mean": torch.zeros(D), "deviation": torch.ones(D)})
    torch.testing.assert_close(model(slots, 2), changed(model.standardised(slots), 2) * model.deviation + model.mean)
    assert plain.isfinite().all()


def test_published_files_are_read_by_name():
    state = published()
    pixels = {"decoder.0.0.weight": torch.zeros(2), "decoder_pos_embedding.grid": torch.zeros(1)}
    slots = wave((1, T, N, D), 0)
    with torch.no_grad():
        torch.testing.assert_close(from_published(state | pixels, 4)(slots, 2), from_published(state, 4)(slots, 2))
    with pytest.raises(ValueError, match="init_latents"):
        from_published(state | {"init_latents": torch.zeros(1)}, 4)
    with pytest.raises(ValueError, match="to_slot.bias"):
        from_published({name: value for name, value in state.items() if name != "rollouter.out_proj.bias"}, 4)
    with pytest.raises(ValueError, match="counts backwards"):
        from_published(state | {"rollouter.enc_t_pe": state["rollouter.enc_t_pe"].flip(1)}, 4)
    with pytest.raises(ValueError, match="no weights of a SlotFormer"):
        from_published({"slots": torch.zeros(3)})


def test_wrong_shapes_are_refused(former):
    for shape in ((2, T + 1, N, D), (2, T, N, D + 1), (T, N, D)):
        with pytest.raises(ValueError, match="burn-in"):
            former(torch.zeros(shape), 1)
    with pytest.raises(ValueError, match="keep must be"):
        former(torch.zeros(2, T, N, D), 1, torch.ones(2, N + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="prediction_heads"):
        SlotFormer(D, T, H, num_heads=3)
