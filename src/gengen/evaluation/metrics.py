"""Figures of merit for images and for features of images: pure functions, computed in fp64."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2048  # rows of either side whose distances are held at a time: 32 MB


def unit(images: Tensor) -> Tensor:
    """uint8, or floats already in [0, 1] -> fp64 in [0, 1]."""
    return images.double() / 255 if images.dtype == torch.uint8 else images.double()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of images, in dB; infinite for equal ones.

    a, b: (N, C, H, W), uint8 or in [0, 1]. Returns (N,).   10 log10(1 / mse), the mean over all channels and pixels.
    """
    return -10 * (unit(a) - unit(b)).square().flatten(1).mean(1).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of images (Wang et al. 2004, eq. 13), 1 for equal ones.

    a, b: (N, C, H, W), uint8 or in [0, 1], 11 pixels or more a side. Returns (N,): the mean over channels and over the
    windows that lie wholly inside. Windows are 11 x 11 Gaussians of sigma 1.5 that sum to 1; C1 = .01^2, C2 = .03^2.
    """
    offsets = torch.arange(-5, 6, dtype=torch.float64, device=a.device)
    gauss = torch.exp(-offsets.square() / (2 * 1.5**2))
    gauss = gauss / gauss.sum()

    def local(x: Tensor) -> Tensor:  # (N * C, 1, H, W) -> (N * C, 1, H - 10, W - 10)
        return F.conv2d(F.conv2d(x, gauss.view(1, 1, 11, 1)), gauss.view(1, 1, 1, 11))

    n = len(a)
    a, b = unit(a).flatten(0, 1)[:, None], unit(b).flatten(0, 1)[:, None]
    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    cov = local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return index.view(n, -1).mean(1)


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), N >= 2."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """|mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (Dowson and Landau 1982).

    C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), so the trace of its root is the sum of their
    roots: defined for singular covariances too, as they are for fewer samples than dimensions.
    """
    mean1, cov1, mean2, cov2 = (x.double() for x in (mean1, cov1, mean2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    trace = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace)


def kid(x: Tensor, y: Tensor, x_kernel: float | None = None) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Bińkowski et al. 2018, eq. 4); below 0 by chance for equal
    sets.

    x: (N, D), y: (M, D); x_kernel: mean_kernel(x), where it is known already.
    """
    between = kernel_sum(x, y) / (len(x) * len(y))
    return (mean_kernel(x) if x_kernel is None else x_kernel) + mean_kernel(y) - 2 * between


def mean_kernel(x: Tensor) -> float:
    """The mean of that kernel over the pairs of x (N, D), but i = i, which would add what only distance 0 has."""
    diagonal = (x.double().square().sum(1) / x.shape[1] + 1).pow(3).sum().item()
    return (kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def kernel_sum(a: Tensor, b: Tensor) -> float:
    """The sum of that kernel over all pairs of a row of a and a row of b."""
    parts = [(p, q) for p in a.double().split(CHUNK) for q in b.double().split(CHUNK)]
    return sum((p @ q.T / a.shape[1] + 1).pow(3).sum().item() for p, q in parts)


def nearest_distances(train: Tensor, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Euclidean distances to, and indices of, the k nearest rows of `train` for each query, nearest first: (Q, k)
    each.

    train: (N, ...), queries: (Q, ...), any dtype, N >= k; a memory-mapped `train` is read a chunk at a time. Distances
    are summed up from differences, never by |a|^2 - 2 a.b + |b|^2, so that a copy is at exactly 0. Of equal distances
    the first row wins.
    """
    distances, indices = [], []
    for part in queries.flatten(1).split(CHUNK):
        best = torch.empty(len(part), 0, dtype=torch.float64)
        index = torch.empty(len(part), 0, dtype=torch.int64)
        for start in range(0, len(train), CHUNK):
            rows = train[start : start + CHUNK].flatten(1).double()
            apart = torch.cdist(part.double(), rows, compute_mode="donot_use_mm_for_euclid_dist")
            best = torch.cat([best, apart], 1)
            index = torch.cat([index, torch.arange(start, start + len(rows)).expand(len(part), -1)], 1)
            best, order = best.sort(dim=1, stable=True)
            best, index = best[:, :k], index.gather(1, order[:, :k])
        distances.append(best)
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def nearest(train: Tensor, queries: Tensor, k: int = 1) -> Tensor:
    """Indices of the k nearest rows of `train` for each query, nearest first: (Q, k)."""
    return nearest_distances(train, queries, k)[1]


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Precision, recall (Kynkäänniemi et al. 2019), density, coverage (Naeem et al. 2020). real: (N, D), fake: (M, D).

    A ball around each point reaches to the k-th nearest other point of its own set, itself left out.
    precision: the share of fakes inside any real ball.     density:  the real balls that hold a fake, counted, / (k
    M).
    recall:    the share of reals inside any fake ball.     coverage: the share of real balls with a fake inside.
    All four depend on N and M: compare only at equal counts.
    """
    real_radius = nearest_distances(real, real, k + 1)[0][:, k]
    fake_radius = nearest_distances(fake, fake, k + 1)[0][:, k]
    apart = torch.cdist(real.double(), fake.double(), compute_mode="donot_use_mm_for_euclid_dist")  # (N, M)
    in_real_ball, in_fake_ball = apart < real_radius[:, None], apart < fake_radius[None]
    return {
        "precision": in_real_ball.any(0).double().mean().item(),
        "recall": in_fake_ball.any(1).double().mean().item(),
        "density": in_real_ball.sum().item() / (k * len(fake)),
        "coverage": in_real_ball.any(1).double().mean().item(),
    }


def auth_pct(train: Tensor, generated: Tensor) -> float:
    """Percentage of authentic samples (Alaa et al. 2022, sec. 2.3): 0 for copies of training points.

    A sample is authentic if it is farther from its nearest training point than that one is from its own nearest.
    train: (N, D), all of the training split; generated: (M, D).
    """
    distance, index = nearest_distances(train, generated)
    touched, place = index[:, 0].unique(return_inverse=True)
    spacing = nearest_distances(train, train[touched], 2)[0][:, 1]  # the nearest row is the point itself, or its equal
    return 100 * (distance[:, 0] > spacing[place]).double().mean().item()
