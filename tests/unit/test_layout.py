"""A model as vectors: by name, aligned, tied weights once, every dtype in its own bytes."""

import copy
import hashlib

import pytest
import torch
from networks import Awkward, Plain, Tied
from torch import nn

from roundelay.errors import LayoutError
from roundelay.layout import ALIGNMENT, Kind, Layout


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.half = nn.Linear(5, 3).to(torch.bfloat16)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("constant", torch.ones(4), persistent=False)


MODELS = [Plain, Awkward, Tied, Mixed]


@pytest.mark.parametrize("model", MODELS)
def test_flatten_and_unflatten_are_inverse(model: type[nn.Module]) -> None:
    module = model()
    layout = Layout.of(module)
    state = layout.unflatten(layout.flatten(module.state_dict()))
    assert state.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)


@pytest.mark.parametrize("model", MODELS)
def test_bind_keeps_values_parameters_and_alignment_and_loads_by_vector(model: type[nn.Module]) -> None:
    module = model()
    layout, before, objects = Layout.of(module), copy.deepcopy(module.state_dict()), list(module.parameters())
    bound = layout.bind(module)
    assert all(a is b for a, b in zip(objects, module.parameters(), strict=True))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.data_ptr() % ALIGNMENT == 0, name
    other = model()
    with torch.no_grad():
        for value in other.state_dict().values():
            value.copy_(torch.ones_like(value))
    bound.load(layout.flatten(other.state_dict()))
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert layout.sha256(layout.flatten(module.state_dict())) == layout.sha256(layout.flatten(other.state_dict()))


def test_statistics_of_one_layer_do_not_spoil_the_backward_pass_of_another() -> None:
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4))
    bound = Layout.of(plain).bind(copy.deepcopy(plain))
    inputs = torch.randn(6, 7)
    for module in (plain, bound.module):
        for _ in range(2):
            module(inputs).pow(2).sum().backward()
    for name, value in plain.state_dict().items():
        assert torch.equal(bound.module.state_dict()[name], value), name
    for one, other in zip(plain.parameters(), bound.module.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert torch.equal(bound.buffers(), torch.cat([plain[at].state_dict()[name] for at in (1, 4)
                                                   for name in ("running_mean", "running_var")]))  # fmt: skip


def test_tied_weights_are_one_tensor_and_stay_tied() -> None:
    module = Tied()
    layout = Layout.of(module)
    assert layout.num_params == 49 + 24
    assert layout.specs[0].aliases == ("decode.weight",)
    layout.bind(module)
    with torch.no_grad():
        module.encode.weight.add_(1)
    assert torch.equal(module.encode.weight, module.decode.weight)


def test_the_hash_is_sha256_of_parameters_float_buffers_and_integers_in_order() -> None:
    module = Awkward()
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    for buffer in (module.norm.running_mean, module.norm.running_var, module.norm.num_batches_tracked):
        digest.update(buffer.numpy().tobytes())
    layout = Layout.of(module)
    assert layout.sha256(layout.flatten(module.state_dict())) == digest.hexdigest()


def test_non_persistent_buffers_are_left_out_and_kinds_are_told_apart() -> None:
    layout = Layout.of(Mixed())
    assert "constant" not in {spec.name for spec in layout.specs}
    assert {s.name: s.kind for s in layout.specs}["seen"] is Kind.INTEGER_BUFFER
    assert layout.dtype is torch.float32
    assert Layout.of(Plain().double()).dtype is torch.float64


def test_states_that_differ_are_refused_by_the_tensors_name() -> None:
    module = Plain()
    layout, state = Layout.of(module), module.state_dict()
    with pytest.raises(LayoutError, match=r"'second.bias'.*missing"):
        layout.flatten({k: v for k, v in state.items() if k != "second.bias"})
    with pytest.raises(LayoutError, match=r"'extra' is not part"):
        layout.flatten({**state, "extra": torch.zeros(1)})
    with pytest.raises(LayoutError, match=r"'first.bias' has shape \(1,\), the model has \(13,\)"):
        layout.flatten({**state, "first.bias": torch.zeros(1)})
    with pytest.raises(LayoutError, match=r"lacks tensor 'norm"):
        Layout.of(Awkward()).require_same(layout, "the other")
    with pytest.raises(LayoutError, match="no parameters"):
        Layout.of(nn.ReLU())
    with pytest.raises(LayoutError, match="complex64"):
        Layout.of(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(LayoutError, match="has no shape yet"):
        Layout.of(nn.LazyLinear(3))


def test_renew_leaves_vectors_that_were_read_as_they_were() -> None:
    module = nn.Linear(16, 16, bias=False)
    bound = Layout.of(module).bind(module)
    old = bound.params()
    assert old.data_ptr() == module.weight.data_ptr()  # no gaps: reading costs nothing
    kept = old.clone()
    bound.renew()
    bound.load_params(torch.zeros(256))
    assert torch.equal(old, kept)


def test_corrections_see_flat_vectors_and_change_every_gradient() -> None:
    module = Plain()
    bound = Layout.of(module).bind(module)
    module(torch.ones(2, 7)).sum().backward()
    module.second.bias.grad = None
    before = torch.cat(
        [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.view(-1) for p in module.parameters()]
    )
    bound.correct_gradients(lambda grad, params: grad.add_(params, alpha=2.0))
    after = torch.cat([p.grad.view(-1) for p in module.parameters()])
    torch.testing.assert_close(after, before + 2 * bound.params())
