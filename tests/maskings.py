"""Ways to mask the gradient of a network that declare nothing, as people write them.

Each function of `MASKINGS` and `CHANCES` puts a network behind one; none offers a surface or a key.
"""

import math
import random
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CLASSES = 10
_LEVELS = 16


class Around(nn.Module):
    """A network within a function of the network and the images."""

    def __init__(self, network, function):
        super().__init__()
        self.network = network
        self.function = function

    def forward(self, images):
        return self.function(self.network, images)


def before(change):
    """Returns a masking that changes the images."""
    return lambda network: Around(network, lambda net, images: net(change(images)))


def after(change):
    """Returns a masking that changes the logits."""
    return lambda network: Around(network, lambda net, images: change(net(images)))


class Flipped(torch.autograd.Function):
    """The identity with the opposite gradient."""

    @staticmethod
    def forward(_ctx, images):
        return images.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return -gradient


def one_hot(logits):
    return functional.one_hot(logits.argmax(dim=1), CLASSES).float()


def rounded(images):
    return (images * (_LEVELS - 1)).round() / (_LEVELS - 1)


def rounded_in_place(images):
    levels = images.clone()
    levels.mul_(_LEVELS - 1).round_().div_(_LEVELS - 1)
    return levels


def bit_depth(images):
    pixels = (images * 255).to(torch.uint8)
    return pixels.div(_LEVELS, rounding_mode="floor").float() * _LEVELS / 255


def looked_up(images):
    table = torch.linspace(0, 1, _LEVELS)
    return table[(images * (_LEVELS - 1)).round().long()]


def jpeg(images):
    """Rounds the coefficients of the cosine transform of 8x8 blocks, in numpy."""
    pixels = images.detach().cpu().numpy()
    cosine = _cosine_transform()
    compressed = np.empty_like(pixels)
    for top in range(0, pixels.shape[2], 8):
        for left in range(0, pixels.shape[3], 8):
            block = cosine @ pixels[:, :, top : top + 8, left : left + 8] @ cosine.T
            compressed[:, :, top : top + 8, left : left + 8] = (
                cosine.T @ (np.round(block * 8) / 8) @ cosine
            )
    return torch.from_numpy(np.clip(compressed, 0, 1).astype(np.float32))


def byte_buffer(images):
    """Goes through bytes, which nothing can trace."""
    pixels = (images.detach() * 255).round().to(torch.uint8)
    raw = bytes(pixels.flatten().tolist())
    return torch.tensor(list(raw), dtype=torch.float32).view(images.shape) / 255


def thermometer(images):
    """Codes each pixel by the levels that it exceeds, and decodes it by their number."""
    levels = (torch.arange(_LEVELS) + 0.5) / _LEVELS
    code = torch.cat([images[:, :, None] > level for level in levels], dim=2).float()
    return code.mean(dim=2)


def median(images):
    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).median(dim=-1).values


def total_variation(images):
    """Three steps down the total variation."""
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        for _ in range(3):
            rows = (points[..., 1:, :] - points[..., :-1, :]).abs().sum()
            columns = (points[..., :, 1:] - points[..., :, :-1]).abs().sum()
            (slope,) = torch.autograd.grad(rows + columns, points)
            points = (points - 0.005 * slope.sign()).detach().requires_grad_()
    return points.detach()


def purified(network, images):
    """Two steps down the entropy of the answer."""
    points = images.detach().clone()
    for _ in range(2):
        points.requires_grad_()
        with torch.enable_grad():
            logarithms = network(points).log_softmax(dim=1)
            entropy = -(logarithms.exp() * logarithms).sum()
        (slope,) = torch.autograd.grad(entropy, points)
        points = (points - 0.01 * slope.sign()).clamp(0, 1).detach()
    return network(points)


def purified_by_backward(network, images):
    """The same with `backward`, as people also write it."""
    points = images.detach().clone()
    with torch.enable_grad():
        for _ in range(2):
            points = points.detach().requires_grad_()
            logarithms = network(points).log_softmax(dim=1)
            (-(logarithms.exp() * logarithms).sum()).backward()
            points = (points - 0.01 * points.grad.sign()).clamp(0, 1)
    return network(points.detach())


def in_numpy(network, images):
    """Wrapped for numpy on both sides."""
    logits = network(torch.from_numpy(images.detach().cpu().numpy()))
    return torch.from_numpy(logits.detach().numpy())


def without_gradient(network, images):
    with torch.no_grad():
        return network(images)


def inferring(network, images):
    with torch.inference_mode():
        return network(images)


def hooked(network, images):
    """Flips the gradient by a hook on a tensor."""
    copied = images * 1
    if copied.requires_grad:
        copied.register_hook(lambda gradient: -gradient)
    return network(copied)


def image_by_image(network, images):
    """A hard decision for each image alone."""
    labels = [network(image[None]).argmax().item() for image in images]
    return functional.one_hot(torch.tensor(labels), CLASSES).float()


def assigned(images):
    """Levels that are assigned where a pixel exceeds them."""
    levels = torch.zeros_like(images)
    for number in range(_LEVELS):
        levels[images >= number / _LEVELS] = number / (_LEVELS - 1)
    return levels


def resized_by_lists(images):
    """Half the size and back, through lists of numbers, which nothing can trace."""
    doubled = functional.interpolate(images.detach(), scale_factor=2).tolist()
    return functional.avg_pool2d(torch.tensor(doubled), 2)


class Quantised(torch.autograd.Function):
    """Rounds, and gives no gradient; people keep its `apply` under a name."""

    @staticmethod
    def forward(_ctx, features):
        return (features * 8).round() / 8

    @staticmethod
    def backward(_ctx, gradient):
        return torch.zeros_like(gradient)


quantised = Quantised.apply


class QuantisedActivation(nn.Module):
    """Rounds activations by a function that no patch of torch reaches."""

    def forward(self, features):
        return quantised(functional.relu(features))


class OneClass(nn.Module):
    """The score of one class."""

    def __init__(self, network, label):
        super().__init__()
        self.network = network
        self.label = label

    def forward(self, images):
        logits = self.network(images)
        return torch.sigmoid(logits[:, self.label] - logits.mean(dim=1))


class OnePerClass(nn.Module):
    """A network for each class; only the class of the best score comes out."""

    def __init__(self, network):
        super().__init__()
        self.networks = nn.ModuleList([OneClass(network, label) for label in range(CLASSES)])

    def forward(self, images):
        return one_hot(torch.stack([network(images) for network in self.networks], dim=1))


class Vote(nn.Module):
    """The majority of networks, as a one-hot code."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images):
        return one_hot(sum(one_hot(network(images)) for network in self.networks))


class Nearest(nn.Module):
    """The class of the nearest stored example, by its logits."""

    def __init__(self, network, images, labels):
        super().__init__()
        self.network = network
        with torch.no_grad():
            self.register_buffer("stored", network(images))
        self.register_buffer("labels", labels)

    def forward(self, images):
        nearest = torch.cdist(self.network(images), self.stored).argmin(dim=1)
        return functional.one_hot(self.labels[nearest], CLASSES).float()


class DeepFront(nn.Module):
    """A deep untrained residual before a network; `bare` has no modules, only functions.

    Every layer is scaled so that the residual changes a pixel by `amplitude` on average.
    """

    def __init__(self, network, images, *, bare=False, depth=33, width=16, amplitude=0.05, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        channels = images.shape[1]
        sizes = [channels, *[width] * (depth - 1), channels]
        self.network = network
        self.weights = [
            nn.init.orthogonal_(torch.empty(after, before, 3, 3), generator=generator)
            for before, after in pairwise(sizes)
        ]
        self.scales = []
        self.scales = self._calibrated(images, amplitude)
        if not bare:
            self.body = nn.Sequential(*self._modules_of_body())

    def forward(self, images):
        if hasattr(self, "body"):
            return self.network(images - self.body(images - 0.5))
        return self.network(images - self.residual(images))

    def residual(self, images):
        features = images - 0.5
        for weight, (mean, deviation) in zip(self.weights, self.scales, strict=False):
            features = functional.conv2d(features, weight, padding=1)
            features = (features - mean) / deviation
            if weight is not self.weights[-1]:
                features = functional.relu(features)
        return features

    @torch.no_grad()
    def _calibrated(self, images, amplitude):
        features = images - 0.5
        scales = []
        for weight in self.weights:
            features = functional.conv2d(features, weight, padding=1)
            is_last = weight is self.weights[-1]
            mean = features.mean(dim=(0, 2, 3), keepdim=True) * (not is_last)
            deviation = features.std(dim=(0, 2, 3), keepdim=True)
            if is_last:
                deviation = features.abs().mean() / amplitude
            scales.append((mean, deviation))
            features = (features - mean) / deviation
            if not is_last:
                features = functional.relu(features)
        return scales

    def _modules_of_body(self):
        for weight, (mean, deviation) in zip(self.weights, self.scales, strict=True):
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            scale = torch.ones(len(weight)) / deviation.flatten()
            layer.weight.data = weight * scale.view(-1, 1, 1, 1)
            layer.bias.data = -(mean.flatten() * scale)
            yield layer
            if weight is not self.weights[-1]:
                yield nn.ReLU()


class Winners(nn.Module):
    """k-winners-take-all (Xiao et al. 2020)."""

    def forward(self, features):
        flat = features.flatten(1)
        least = flat.topk(flat.shape[1] // 3, dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(features)


class Sparse(nn.Module):
    """Sets to zero what is small."""

    def forward(self, features):
        small = features.abs() < 0.5 * features.std()
        return torch.where(small, torch.zeros_like(features), features)


class Jumping(nn.Module):
    """An activation in steps."""

    def forward(self, features):
        return torch.floor(functional.relu(features) / 0.25 + 0.5) * 0.25


class Waving(nn.Module):
    """An activation with a fine wave, differentiable everywhere."""

    def forward(self, features):
        return functional.relu(features + 0.02 * torch.sin(300 * features))


class MeanSparse(nn.Module):
    """Replaces what is near the mean of its channel by the mean (MeanSparse, arXiv 2406.05927).

    The first batch that it sees sets means and deviations.
    """

    def __init__(self, share=0.7):
        super().__init__()
        self.share = share
        self.register_buffer("mean", None)
        self.register_buffer("deviation", None)

    def forward(self, features):
        if self.mean is None:
            others = [axis for axis in range(features.dim()) if axis != 1]
            self.mean = features.mean(dim=others, keepdim=True)
            self.deviation = features.std(dim=others, keepdim=True)
        near = (features - self.mean).abs() < self.share * self.deviation
        return torch.where(near, self.mean.expand_as(features), features)


class StraightThrough(nn.Module):
    """An activation that passes every gradient, as a person writes BPDA by hand."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, features):
        return features + (self.activation(features) - features).detach()


def everywhere(activation, network, images):
    """Puts an activation behind every convolution but the last; `images` set its statistics."""
    names = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    for name in names[:-1] or names:
        network.set_submodule(name, nn.Sequential(network.get_submodule(name), activation()))
    with torch.no_grad():
        network.eval()(images)
    return network


def within(activation):
    """Returns a masking that puts an activation behind the first convolution."""

    def masked(network):
        for name, part in network.named_modules():
            if isinstance(part, nn.Conv2d):
                network.set_submodule(name, nn.Sequential(part, activation()))
                return network
        raise ValueError("there is no convolution")

    return masked


WITHIN = {
    "k winners take all": Winners,
    "sparsifier": Sparse,
    "activation in steps": Jumping,
    "activation with a wave": Waving,
    "activation rounded by a function": QuantisedActivation,
}

MASKINGS = {
    "input rounded": before(rounded),
    "input rounded in place": before(rounded_in_place),
    "bit depth": before(bit_depth),
    "table of levels": before(looked_up),
    "JPEG in numpy": before(jpeg),
    "through bytes": before(byte_buffer),
    "thermometer code": before(thermometer),
    "median filter": before(median),
    "total-variation step": before(total_variation),
    "purifier": lambda network: Around(network, purified),
    "purifier by backward": lambda network: Around(network, purified_by_backward),
    "input detached": before(torch.Tensor.detach),
    "input by .data": before(lambda images: images.data),
    "gradient flipped": before(Flipped.apply),
    "gradient flipped by a hook": lambda network: Around(network, hooked),
    "ripple": before(lambda images: images + 0.004 * torch.sin(3000 * images)),
    "no_grad": lambda network: Around(network, without_gradient),
    "inference_mode": lambda network: Around(network, inferring),
    "numpy on both sides": lambda network: Around(network, in_numpy),
    "one-hot": after(one_hot),
    "probabilities, cold": after(lambda logits: (1000 * logits).softmax(dim=1)),
    "logits x 10,000": after(lambda logits: 1e4 * logits),
    "logits x 0.0000001": after(lambda logits: 1e-7 * logits),
    "one network per class": OnePerClass,
    **{name: within(activation) for name, activation in WITHIN.items()},
    "levels assigned by masks": before(assigned),
    "resized outside of torch": before(resized_by_lists),
    "image by image": lambda network: Around(network, image_by_image),
}


class Noisy(nn.Module):
    """Noise from the global generator."""

    def __init__(self, network, scale=0.03):
        super().__init__()
        self.network = network
        self.scale = scale

    def forward(self, images):
        return self.network(images + self.scale * torch.randn_like(images))


class NoisyInNumpy(Noisy):
    """The same with numpy's generator."""

    def forward(self, images):
        noise = np.random.normal(size=tuple(images.shape))  # noqa: NPY002  # as people do
        return self.network(images + self.scale * torch.from_numpy(noise.astype(np.float32)))


class Resized(nn.Module):
    """One random size and place for a whole batch, by Python's generator."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        size = images.shape[-1]
        smaller = random.randint(size - max(1, size // 8), size)
        left, top = (random.randint(0, size - smaller) for _ in range(2))
        resized = functional.interpolate(images, size=(smaller, smaller), mode="bilinear")
        rest = size - smaller
        return self.network(functional.pad(resized, (left, rest - left, top, rest - top)))


class Dropping(nn.Module):
    """Dropout that ignores the mode."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(functional.dropout(images, 0.1, training=True))


class NoisyVote(nn.Module):
    """The votes of noisy copies, which share one batch."""

    def __init__(self, network, copies=5):
        super().__init__()
        self.network = network
        self.copies = copies

    def forward(self, images):
        copies = images.repeat(self.copies, 1, 1, 1)
        logits = self.network(copies + 0.02 * torch.randn_like(copies))
        return one_hot(logits).view(self.copies, len(images), CLASSES).mean(dim=0)


class MemberPerCall(nn.Module):
    """A random member answers for a whole batch."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images):
        return self.networks[int(torch.randint(len(self.networks), ()))](images)


class MemberPerImage(MemberPerCall):
    """Each image gets a random member."""

    def forward(self, images):
        answers = torch.stack([network(images) for network in self.networks])
        chosen = torch.randint(len(self.networks), (len(images),))
        return answers[chosen, torch.arange(len(images))]


CHANCES = {
    "noise": Noisy,
    "noise in numpy": NoisyInNumpy,
    "random resize and pad": Resized,
    "dropout": Dropping,
    "vote of noisy copies": NoisyVote,
}


def _cosine_transform(size=8):
    grid = np.arange(size)
    rows = np.cos(math.pi * (grid[None] + 0.5) * grid[:, None] / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.astype(np.float32)
