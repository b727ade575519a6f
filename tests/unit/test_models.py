"""The reference networks: sizes as published, shapes as documented, fit for averaging and for vmap."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from roundelay.models import CNN, MLP, LeNet, Logistic, SmallCNN

MODELS = [
    (SmallCNN, (1, 28, 28), 46_730),
    (
        lambda: SmallCNN(channels=(32, 64), hidden=512, padding=2),
        (1, 28, 28),
        1_663_370,
    ),  # McMahan et al. 2017: the CNN
    (LeNet, (3, 32, 32), 62_006),
    (CNN, (3, 32, 32), 1_626_442),
    (lambda: CNN(glorot=True), (3, 32, 32), 896 + 18_496 + 1_605_760 + 1_290),  # pfl-research: layer by layer
    (lambda: CNN(in_channels=1, num_classes=62, image_size=28), (1, 28, 28), 1_206_590),  # LEAF's FEMNIST: 1,206,590
    (lambda: Logistic(784, 10), (1, 28, 28), 7_850),
    (lambda: MLP(784, [200, 200], 10), (1, 28, 28), 199_210),  # McMahan et al. 2017: "199,210 total parameters"
    (lambda: MLP(60, (), 10), (60,), 610),
]


@pytest.mark.parametrize(("make", "shape", "num_parameters"), MODELS)
def test_size_and_shape(make, shape, num_parameters):
    model = make()
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert not list(model.buffers())
    logits = model(torch.zeros(5, *shape))
    assert logits.ndim == 2
    assert len(logits) == 5


@pytest.mark.parametrize(("make", "shape", "num_parameters"), MODELS)
def test_each_parameter_gets_a_gradient(make, shape, num_parameters):
    torch.manual_seed(1)
    model = make()
    nn.functional.cross_entropy(model(torch.randn(16, *shape)), torch.arange(16) % 10).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("make", "shape", "num_parameters"), MODELS)
def test_a_stack_of_models_answers_as_each_alone(make, shape, num_parameters):
    torch.manual_seed(1)
    models = [make().eval() for _ in range(2)]
    params, buffers = stack_module_state(models)
    inputs = torch.randn(2, 3, *shape)
    stacked = vmap(lambda p, b, x: functional_call(models[0], (p, b), (x,)))(params, buffers, inputs)
    alone = torch.stack([model(x) for model, x in zip(models, inputs, strict=True)])
    torch.testing.assert_close(stacked, alone, rtol=1e-4, atol=1e-5)


def test_glorots_weights_have_his_spread_and_the_same_biases():
    model = CNN(glorot=True).requires_grad_(False)
    for layer, fans in ((model.conv1, (27, 288)), (model.conv2, (288, 576)), (model.hidden, (12544, 128))):
        bound = (6 / sum(fans)) ** 0.5
        assert 0.97 * bound < float(layer.weight.abs().max()) < 1.0001 * bound  # float32
        assert float(layer.weight.var()) == pytest.approx(2 / sum(fans), rel=0.15)
        assert float(layer.bias.abs().max()) < 1.0001 * fans[0] ** -0.5


def test_mlp_is_linear_layers_with_relu_between():
    model, inputs = MLP(6, [5, 4], 3), torch.randn(7, 2, 3)
    first, second, third = model.layers
    straight = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third)
    assert torch.equal(model(inputs), straight(inputs))


def test_small_cnn_takes_other_widths():
    model = SmallCNN(in_channels=3, num_classes=5, channels=(4, 6), hidden=7)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 5)


def test_cnn_drops_out_in_training_only():
    torch.manual_seed(1)
    model, images = CNN(), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_relu_after_pooling_is_relu_before_pooling():
    model, images = SmallCNN(), torch.randn(4, 1, 28, 28)
    features = model.pool(model.conv2(model.pool(model.conv1(images).relu())).relu())
    assert torch.equal(model(images), model.out(model.hidden(features.flatten(1)).relu()))
