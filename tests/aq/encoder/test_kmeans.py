"""k-means in the metric of the Hessian's blocks, against brute force and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch

from sedaq.aq.encoder.kmeans import Cloud, kmeans, residual_kmeans
from sedaq.aq.encoder.part import Part, total
from sedaq.aq.formats import Format
from sedaq.models.hessian import Hessian


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def metrics(places: int, g: int, seed: int = 1) -> torch.Tensor:
    x = gaussian(places, 2 * g, g, seed=seed)
    return x.transpose(1, 2) @ x / (2 * g) + 0.05 * torch.eye(g)


def cloud(places: int = 3, rows: int = 40, g: int = 2, seed: int = 0) -> Cloud:
    return Cloud(gaussian(places, rows, g, seed=seed), metrics(places, g, seed + 1), 0.1 + gaussian(places, rows, seed=seed + 2).square())


def part(columns: int, rows: int = 30, groups: int = 1, seed: int = 0) -> Part:
    hessian = Hessian((metrics(groups, columns, seed + 1),))
    return Part(gaussian(groups, rows, columns, seed=seed), hessian, hessian.factor())


def distances(cloud: Cloud, centres: torch.Tensor) -> torch.Tensor:
    """(v − c) H (v − c)ᵀ, (P, R, K), double."""
    d = (cloud.vectors.unsqueeze(2) - centres).double()
    return ((d @ cloud.metric.unsqueeze(1).double()) * d).sum(3)


def objective(clouds: list[Cloud], centres: torch.Tensor) -> float:
    return sum((c.mass.double() * distances(c, centres).amin(2)).sum().item() for c in clouds)


# -- clouds ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("n_rows", [1, 4, 99])
def test_a_cloud_holds_every_group_with_its_block_and_its_rows_weight(groups, n_rows):
    p, g = part(12, rows=7, groups=groups), 4
    p.scales = p.scales * 2
    made = Cloud.of(p, g, n_rows)
    kept = min(n_rows, 7)
    assert made.vectors.shape == (groups * 3, kept, g) and made.metric.shape == (groups * 3, g, g) and made.mass.shape == (groups * 3, kept)
    for s, j, r in itertools.product(range(groups), range(3), range(kept)):
        here, scale = slice(j * g, (j + 1) * g), p.scales[s, r, 0]
        torch.testing.assert_close(made.vectors[3 * s + j, r] * scale, p.w[s, r, here])
        assert torch.equal(made.metric[3 * s + j], p.hessian.blocks[0][s, here, here])
        assert made.mass[3 * s + j, r].item() == pytest.approx(scale.item() ** 2)


def test_groups_may_straddle_the_edge_of_two_blocks():
    blocks = metrics(1, 5), metrics(1, 4, seed=3)
    hessian = Hessian(blocks)
    made = Cloud.of(Part(gaussian(1, 6, 9), hessian, hessian.factor()), 3, 6)
    dense = torch.block_diag(blocks[0][0], blocks[1][0])
    assert torch.equal(made.metric, torch.stack([dense[a : a + 3, a : a + 3] for a in (0, 3, 6)]))


def test_zero_rows_weigh_nothing():
    p = part(8)
    p.w[0, 3] = 0
    made = Cloud.of(Part(p.w, p.hessian, p.factor), 4, 30)
    assert (made.mass[:, 3] == 0).all() and (made.vectors[:, 3] == 0).all() and made.vectors.isfinite().all()


@pytest.mark.parametrize(("places", "rows", "n_centres"), [(3, 40, 7), (2, 5, 1), (1, 1, 4), (3, 1100, 2000)])
def test_the_nearest_centre_equals_brute_force(places, rows, n_centres):
    """The last case has more distances than are held at once."""
    c, centres = cloud(places, rows), gaussian(n_centres, 2, seed=9)
    codes = c.assign(centres)
    assert codes.shape == (places, rows)
    for place in range(places):
        every = distances(Cloud(c.vectors[place : place + 1], c.metric[place : place + 1], c.mass[place : place + 1]), centres)[0]
        found = every.gather(1, codes[place].unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(found, every.amin(1), rtol=1e-4, atol=1e-5)


def test_sums_are_both_sides_of_every_centres_equation():
    c, k = cloud(), 5
    codes = torch.randint(k, (3, 40), generator=generator())
    left, right = c.sums(codes, k)
    for centre in range(k):
        wanted_left, wanted_right = torch.zeros(2, 2), torch.zeros(2)
        for place, row in (codes == centre).nonzero().tolist():
            wanted_left += c.mass[place, row] * c.metric[place]
            wanted_right += c.mass[place, row] * c.metric[place] @ c.vectors[place, row]
        torch.testing.assert_close(left[centre], wanted_left)
        torch.testing.assert_close(right[centre], wanted_right)


def test_what_a_codebook_leaves_and_vectors_up_to_sign():
    c, centres = cloud(), gaussian(4, 2, seed=9)
    codes = c.assign(centres)
    left = c.minus(centres, codes)
    torch.testing.assert_close(left.vectors + centres[codes], c.vectors)
    assert left.metric is c.metric and left.mass is c.mass
    positive = c.up_to_sign().vectors
    assert torch.equal(positive.abs(), c.vectors.abs()) and (positive.sum(2) >= 0).all()
    assert ((positive == c.vectors).all(2) | (positive == -c.vectors).all(2)).all()


# -- Lloyd's algorithm -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_clouds", [1, 3])
def test_one_centre_is_the_weighted_mean_in_the_metric(n_clouds):
    clouds = [cloud(places=2 + i, rows=20 + i, g=3, seed=5 * i) for i in range(n_clouds)]
    left, right = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for c in clouds:
        weighed = c.mass.double().unsqueeze(2).unsqueeze(3) * c.metric.double().unsqueeze(1)
        left += weighed.sum((0, 1))
        right += (weighed @ c.vectors.double().unsqueeze(3)).sum((0, 1)).squeeze(1)
    wanted = torch.linalg.solve(left, right)
    (centre,) = kmeans(clouds, 1, 1, generator())
    torch.testing.assert_close(centre.double(), wanted, rtol=2e-3, atol=1e-4)  # a ridge of 1e-4 pulls it a little
    assert objective(clouds, centre.unsqueeze(0)) < 1.0001 * objective(clouds, wanted.unsqueeze(0))


@pytest.mark.parametrize("k", [2, 8, 32])
@pytest.mark.parametrize("seed", range(3))
def test_the_objective_does_not_rise_from_one_iteration_to_the_next(k, seed):
    clouds = [cloud(rows=60, seed=seed), cloud(places=2, rows=50, seed=seed + 10)]
    reached = [objective(clouds, kmeans(clouds, k, iterations, generator(seed))) for iterations in range(9)]
    assert all(after <= before * (1 + 1e-4) for before, after in itertools.pairwise(reached)), reached
    assert reached[-1] < 0.9 * reached[0]


def test_well_separated_vectors_are_found():
    truth = torch.tensor([[10.0, 0], [-10, 3], [0, 20]])
    codes = torch.randint(3, (4, 50), generator=generator(2))
    c = Cloud(truth[codes] + 0.01 * gaussian(4, 50, 2), metrics(4, 2), torch.ones(4, 50))
    best = min((kmeans([c], 3, 10, generator(seed)) for seed in range(5)), key=lambda centres: objective([c], centres))
    torch.testing.assert_close(best[best[:, 1].argsort()], truth[truth[:, 1].argsort()], rtol=1e-2, atol=1e-2)


def test_the_metric_matters_where_blocks_are_anisotropic():
    metric = torch.diag(torch.tensor([100.0, 1, 1, 0.01])).expand(4, 4, 4)
    c = Cloud(gaussian(4, 300, 4), metric, torch.ones(4, 300))
    plain = Cloud(c.vectors, torch.eye(4).expand(4, 4, 4), c.mass)
    weighed, unweighed = (objective([c], kmeans([made], 16, 15, generator())) for made in (c, plain))
    assert weighed < 0.5 * unweighed


def test_rows_count_by_the_square_of_their_scale():
    mass = torch.ones(1, 40)
    mass[0, :5] = 1000
    heavy = Cloud(gaussian(1, 40, 2), torch.eye(2).unsqueeze(0), mass)
    (centre,) = kmeans([heavy], 1, 1, generator())
    torch.testing.assert_close(centre, heavy.vectors[0, :5].mean(0), atol=0.02, rtol=0)


@pytest.mark.parametrize("n_centres", [6, 7, 50])
@pytest.mark.parametrize("iterations", [0, 5])
def test_more_centres_than_vectors(n_centres, iterations):
    c = cloud(places=2, rows=3)
    centres = kmeans([c], n_centres, iterations, generator())
    assert centres.shape == (n_centres, 2) and centres.isfinite().all()
    assert objective([c], centres) < 1e-6 * objective([c], torch.zeros(1, 2))


def test_vectors_that_weigh_nothing_or_are_all_the_same():
    for c in (
        Cloud(torch.zeros(2, 5, 3), metrics(2, 3), torch.zeros(2, 5)),
        Cloud(torch.ones(2, 5, 3), metrics(2, 3), torch.ones(2, 5)),
        Cloud(torch.ones(2, 5, 3), torch.zeros(2, 3, 3), torch.ones(2, 5)),
    ):
        centres = kmeans([c], 4, 6, generator())
        assert centres.isfinite().all() and objective([c], centres) < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_centres_that_lost_their_vectors_move_to_others(seed):
    """Of six values, some are drawn twice at first and others not at all."""
    values = torch.tensor([[5.0, 0], [-5, 1], [0, 7], [1, -6], [9, 9], [-8, -7]])
    c = Cloud(values.repeat(20, 1).unsqueeze(0), metrics(1, 2), torch.ones(1, 120))
    start, end = (objective([c], kmeans([c], 6, iterations, generator(seed))) for iterations in (0, 40))
    assert start > 10 and end < 1e-3


def test_results_repeat_and_depend_on_the_generator():
    clouds = [cloud(), cloud(seed=4)]
    first, again, other = (kmeans(clouds, 8, 5, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


# -- codebooks ---------------------------------------------------------------------------------------------------------------------------


def left_over(parts: list[Part], format: Format, stored: torch.Tensor) -> list[float]:
    """Objective before the first codebook, and after each, every vector given its nearest codeword in turn."""
    clouds = [Cloud.of(p, format.group_size, p.w.shape[1]) for p in parts]
    zero = torch.zeros(1, format.group_size)
    reached = [objective(clouds, zero)]
    for book in format.expansion @ stored:
        clouds = [c.minus(book, c.assign(book)) for c in clouds]
        reached.append(objective(clouds, zero))
    return reached


@pytest.mark.parametrize("text", ["3x4g4", "3x4g4m", "3x4g4h", "3x2g2h", "3x2g4m", "1x6g8"])
@pytest.mark.parametrize("n_parts", [1, 2])
def test_every_codebook_leaves_less(text, n_parts):
    format = Format.parse(text)
    parts = [part(16, rows=40, groups=1 + i, seed=7 * i) for i in range(n_parts)]
    stored = residual_kmeans(parts, format, 8, 1 << 20, generator())
    assert stored.shape == (format.n_codebooks, format.n_stored_entries, format.group_size) and stored.isfinite().all()
    reached = left_over(parts, format, stored)
    assert all(after < 0.9 * before for before, after in itertools.pairwise(reached)), reached


def test_a_mirrored_book_beats_a_free_one_of_as_many_vectors():
    parts = [part(16, rows=200)]
    mirrored, free = Format.parse("1x5g4m"), Format.parse("1x4g4")
    (_, with_mirror), (_, without) = (left_over(parts, f, residual_kmeans(parts, f, 10, 1 << 20, generator())) for f in (mirrored, free))
    assert with_mirror < 0.9 * without


def test_the_second_half_of_a_hierarchical_book_refines_the_first():
    parts = [part(16, rows=200)]
    hierarchical = Format.parse("1x6g4h")
    stored = residual_kmeans(parts, hierarchical, 10, 1 << 20, generator())
    first, second = stored[0, :8], stored[0, 8:]
    (c,) = (Cloud.of(p, 4, 200) for p in parts)
    assert left_over(parts, hierarchical, stored)[1] < 0.9 * objective([c], first)
    assert second.norm() < first.norm()


def test_a_mirrored_book_of_vectors_and_their_negatives():
    truth = torch.tensor([[4.0, 1.0], [1.0, 5.0]])
    signs = torch.randint(2, (40, 8, 1), generator=generator(1)) * 2.0 - 1
    w = (signs * truth[torch.arange(8) % 2]).reshape(1, 40, 16)
    hessian = Hessian.identity(16)
    p, format = Part(w, hessian, hessian.factor()), Format.parse("1x2g2m")
    reached = [left_over([p], format, residual_kmeans([p], format, 5, 1 << 20, generator(seed))) for seed in range(4)]
    assert min(after / before for before, after in reached) < 1e-6  # where both were drawn at first


def test_no_more_vectors_than_asked_for_are_looked_at():
    """About as many vectors of each part as its share, from its first rows."""
    format, parts = Format.parse("1x3g4"), [part(16, rows=40), part(16, rows=80, seed=3)]
    few = [Part(p.w[:, : p.w.shape[1] // 4], p.hessian, p.factor) for p in parts]
    n_vectors = total([torch.tensor(p.w.numel() // 4) for p in few]).item()
    wanted = residual_kmeans(few, format, 5, 1 << 20, generator())
    assert torch.equal(residual_kmeans(parts, format, 5, n_vectors, generator()), wanted)
    assert residual_kmeans(parts, format, 2, 1, generator()).isfinite().all()


def test_layers_smaller_than_their_codebook():
    p = part(8, rows=2)
    for text in ("2x6g4", "1x8g4m", "1x8g8h"):
        format = Format.parse(text)
        before, *_, after = left_over([p], format, residual_kmeans([p], format, 5, 1 << 20, generator()))
        assert after < 1e-4 * before
