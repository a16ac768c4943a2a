"""InfoNCE in closed form."""

import math

import pytest
import torch

from train.style_encoder.contrastive import info_nce, nearest_neighbours


def test_perfect_clusters_leave_the_log_of_the_positives():
    labels = torch.tensor([0, 0, 1, 1])
    embeddings = torch.eye(2)[labels]
    loss = info_nce(embeddings, embeddings, labels, labels, temperature=0.01)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)


def test_equal_embeddings_leave_the_log_of_the_batch():
    labels = torch.arange(6)
    loss = info_nce(torch.ones(6, 4), torch.ones(6, 4), labels, labels)
    assert loss.item() == pytest.approx(math.log(6), abs=1e-5)


def test_rows_without_a_positive_count_for_nothing():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 5, generator=generator) for _ in range(2))
    labels, others = torch.tensor([0, 1, 7]), torch.tensor([1, 0, 2])
    both = info_nce(first, second, labels, others)
    kept = info_nce(first[:2], second, labels[:2], others)
    torch.testing.assert_close(both, kept)
    assert info_nce(first, second, labels, others + 10).item() == 0


def test_order_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 5, generator=generator) for _ in range(2))
    labels, others = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1])
    order, other = torch.tensor([2, 0, 3, 1]), torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(
        info_nce(first[order], second[other], labels[order], others[other]),
        info_nce(first, second, labels, others),
    )


def test_zero_vectors_and_half_precision_give_numbers():
    labels = torch.zeros(2, dtype=torch.long)
    zeros = torch.zeros(2, 3, requires_grad=True)
    loss = info_nce(zeros, zeros, labels, labels)
    loss.backward()
    assert loss.isfinite()
    assert zeros.grad.isfinite().all()
    assert info_nce(zeros.bfloat16(), zeros.bfloat16(), labels, labels).dtype == torch.float32


def test_neighbours_by_cosine_not_by_length():
    gallery = torch.tensor([[10.0, 1.0], [0.0, 0.1]])
    assert nearest_neighbours(torch.tensor([[0.2, 3.0]]), gallery).tolist() == [[1]]
    assert nearest_neighbours(torch.ones(1, 2), gallery, count=9).shape == (1, 2)
