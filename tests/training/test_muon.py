"""Muon against torch's own on matrices, and against an SVD."""

import copy

import pytest
import torch
from torch import nn

from s2tdpt.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(24, 24), (8, 48), (48, 8)])
def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalize(matrices, steps=12) @ vh.mT
    levels = inner.diagonal(dim1=-2, dim2=-1)
    assert levels.min() > 0.6
    assert levels.max() < 1.3
    torch.testing.assert_close(inner, torch.diag_embed(levels), atol=1e-3, rtol=0)


def test_orthogonalize_treats_stacked_matrices_one_by_one():
    matrices = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(1))
    one_by_one = torch.stack([orthogonalize(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), one_by_one)
    assert orthogonalize(torch.zeros(2, 3)).isfinite().all()


def _train(params, optimizer, steps=6):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def test_six_steps_agree_with_torch_on_matrices():
    generator = torch.Generator().manual_seed(2)
    start = [torch.randn(shape, generator=generator) for shape in [(12, 20), (20, 12), (12, 20), (16, 16)]]
    settings = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "ns_steps": 5}
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    _train(ours, Muon(ours, **settings))
    _train(theirs, torch.optim.Muon(theirs, adjust_lr_fn="original", **settings))
    for mine, oracle, first in zip(ours, theirs, start, strict=True):
        moved = (oracle - first).norm()
        assert (mine - oracle).norm() < 0.01 * moved  # torch's products run in bfloat16, ours in float32


def test_a_kernel_is_the_matrix_of_its_output_channels():
    kernel = nn.Parameter(torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(3)))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    _train([kernel], Muon([kernel], lr=0.1, weight_decay=0.1))
    _train([matrix], Muon([matrix], lr=0.1, weight_decay=0.1))
    assert torch.equal(kernel.flatten(1), matrix)


def test_one_batch_of_like_matrices_leaves_each_its_own_update():
    shapes = [(16, 40), (16, 63), (50, 16), (16, 4, 3, 3), (16, 16)]  # all but the last in one batch
    together = [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(4))) for shape in shapes]
    alone = [nn.Parameter(param.detach().clone()) for param in together]
    grads = [torch.randn(shape, generator=torch.Generator().manual_seed(6)) for shape in shapes]
    for param, other, grad in zip(together, alone, grads, strict=True):
        param.grad, other.grad = grad, grad.clone()
    Muon(together, lr=0.1).step()
    for param, other in zip(together, alone, strict=True):
        Muon([other], lr=0.1).step()
        torch.testing.assert_close(param, other)


def test_channels_last_kernels_and_tensor_learning_rates_give_the_same_weights():
    plain = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(3)))
    last = nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    _train([plain], Muon([plain], lr=0.1, weight_decay=0.1))
    _train([last], Muon([last], lr=torch.tensor(0.1), weight_decay=0.1))
    torch.testing.assert_close(plain, last)


def test_resumed_training_is_bit_identical():
    params = [nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(6, 3, 2, 2))]
    optimizer = Muon(params, lr=0.1)
    _train(params, optimizer, 3)
    again = [nn.Parameter(param.detach().clone()) for param in params]
    resumed = Muon(again, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _train(params, optimizer, 3)
    _train(again, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


def test_parameters_without_a_gradient_stay_and_vectors_are_refused():
    idle, busy = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([idle, busy], lr=0.1, weight_decay=0.5)
    busy.grad = torch.eye(3)
    assert optimizer.step(lambda: 7) == 7
    assert torch.equal(idle, torch.ones(3, 3))
    assert not torch.equal(busy, torch.ones(3, 3))
    with pytest.raises(ValueError, match="not a parameter of shape"):
        Muon([nn.Parameter(torch.ones(3))])
