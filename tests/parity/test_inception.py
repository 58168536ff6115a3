"""Our Inception-v3 and resizing against plain torch modules written from the published layout.

Random weights: the architecture is what is compared. The state dict has the names of the public
file, so the reader is compared too.
"""

import jax
import numpy as np
import pytest

from unclip_jax.metrics import inception_weights as weights
from unclip_jax.metrics import resize
from unclip_jax.metrics.inception import Inception, InceptionConfig

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


class Basic(nn.Module):
    def __init__(self, before, after, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(before, after, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


def average(x):
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(nn.Module):
    def __init__(self, n, pool, c):
        super().__init__()
        self.branch1x1 = Basic(n, c(64), kernel_size=1)
        self.branch5x5_1 = Basic(n, c(48), kernel_size=1)
        self.branch5x5_2 = Basic(c(48), c(64), kernel_size=5, padding=2)
        self.branch3x3dbl_1 = Basic(n, c(64), kernel_size=1)
        self.branch3x3dbl_2 = Basic(c(64), c(96), kernel_size=3, padding=1)
        self.branch3x3dbl_3 = Basic(c(96), c(96), kernel_size=3, padding=1)
        self.branch_pool = Basic(n, c(pool), kernel_size=1)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average(x))], 1)


class B(nn.Module):
    def __init__(self, n, c):
        super().__init__()
        self.branch3x3 = Basic(n, c(384), kernel_size=3, stride=2)
        self.branch3x3dbl_1 = Basic(n, c(64), kernel_size=1)
        self.branch3x3dbl_2 = Basic(c(64), c(96), kernel_size=3, padding=1)
        self.branch3x3dbl_3 = Basic(c(96), c(96), kernel_size=3, stride=2)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], 1)


class C(nn.Module):
    def __init__(self, n, width, c):
        super().__init__()
        w, wide = c(width), {"kernel_size": (1, 7), "padding": (0, 3)}
        high = {"kernel_size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Basic(n, c(192), kernel_size=1)
        self.branch7x7_1 = Basic(n, w, kernel_size=1)
        self.branch7x7_2 = Basic(w, w, **wide)
        self.branch7x7_3 = Basic(w, c(192), **high)
        self.branch7x7dbl_1 = Basic(n, w, kernel_size=1)
        self.branch7x7dbl_2 = Basic(w, w, **high)
        self.branch7x7dbl_3 = Basic(w, w, **wide)
        self.branch7x7dbl_4 = Basic(w, w, **high)
        self.branch7x7dbl_5 = Basic(w, c(192), **wide)
        self.branch_pool = Basic(n, c(192), kernel_size=1)

    def forward(self, x):
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average(x))], 1)


class D(nn.Module):
    def __init__(self, n, c):
        super().__init__()
        self.branch3x3_1 = Basic(n, c(192), kernel_size=1)
        self.branch3x3_2 = Basic(c(192), c(320), kernel_size=3, stride=2)
        self.branch7x7x3_1 = Basic(n, c(192), kernel_size=1)
        self.branch7x7x3_2 = Basic(c(192), c(192), kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Basic(c(192), c(192), kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Basic(c(192), c(192), kernel_size=3, stride=2)

    def forward(self, x):
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat(
            [three, self.branch7x7x3_4(seven), functional.max_pool2d(x, 3, stride=2)], 1
        )


class E(nn.Module):
    def __init__(self, n, maximum, c):
        super().__init__()
        wide = {"kernel_size": (1, 3), "padding": (0, 1)}
        high = {"kernel_size": (3, 1), "padding": (1, 0)}
        self.maximum = maximum
        self.branch1x1 = Basic(n, c(320), kernel_size=1)
        self.branch3x3_1 = Basic(n, c(384), kernel_size=1)
        self.branch3x3_2a = Basic(c(384), c(384), **wide)
        self.branch3x3_2b = Basic(c(384), c(384), **high)
        self.branch3x3dbl_1 = Basic(n, c(448), kernel_size=1)
        self.branch3x3dbl_2 = Basic(c(448), c(384), kernel_size=3, padding=1)
        self.branch3x3dbl_3a = Basic(c(384), c(384), **wide)
        self.branch3x3dbl_3b = Basic(c(384), c(384), **high)
        self.branch_pool = Basic(n, c(192), kernel_size=1)

    def forward(self, x):
        three = self.branch3x3_1(x)
        three = torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], 1)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1)
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else average(x)
        return torch.cat([self.branch1x1(x), three, double, self.branch_pool(pooled)], 1)


class Reference(nn.Module):
    def __init__(self, divide):
        super().__init__()

        def c(n):
            return n // divide

        self.Conv2d_1a_3x3 = Basic(3, c(32), kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = Basic(c(32), c(32), kernel_size=3)
        self.Conv2d_2b_3x3 = Basic(c(32), c(64), kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = Basic(c(64), c(80), kernel_size=1)
        self.Conv2d_4a_3x3 = Basic(c(80), c(192), kernel_size=3)
        self.Mixed_5b, self.Mixed_5c = A(c(192), 32, c), A(c(256), 64, c)
        self.Mixed_5d, self.Mixed_6a = A(c(288), 64, c), B(c(288), c)
        self.Mixed_6b, self.Mixed_6c = C(c(768), 128, c), C(c(768), 160, c)
        self.Mixed_6d, self.Mixed_6e = C(c(768), 160, c), C(c(768), 192, c)
        self.Mixed_7a = D(c(768), c)
        self.Mixed_7b, self.Mixed_7c = E(c(1280), False, c), E(c(2048), True, c)
        self.fc = nn.Linear(c(2048), 1008)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c"):
            x = getattr(self, f"Mixed_{name}")(x)
        spatial = self.Mixed_6d.branch1x1(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        for name in ("6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        pool = x.mean(dim=(2, 3))
        return pool, spatial, self.fc(pool), pool @ self.fc.weight.T


def reference(divide):
    torch.manual_seed(0)
    model = Reference(divide).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("conv.weight"):  # keep the signal through 48 layers
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("bn.weight", "running_var")):
                tensor.uniform_(0.7, 1.3)
            elif name.endswith(("bn.bias", "running_mean")):
                tensor.normal_(0, 0.2)
    return model


@pytest.mark.parametrize(("divide", "side"), [(1, 299), (16, 107)])
def test_network(divide, side, tmp_path):
    model = reference(divide)
    torch.save(model.state_dict(), tmp_path / "inception.pth")
    cfg = InceptionConfig(divide)
    params = weights.load(tmp_path / "inception.pth", cfg=cfg)
    images = np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    got = jax.jit(lambda p, x: Inception(cfg).apply({"params": p}, x))(params, images)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for ours, theirs in zip(
        (got.pool, got.spatial, got.logits, got.unbiased), expected, strict=True
    ):
        theirs = theirs.numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() <= 1e-4


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (400, 310)])
def test_torch_resize(shape):
    images = np.random.default_rng(1).integers(0, 256, (2, *shape, 3)).astype(np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    expected = (2 * x - 1).permute(0, 2, 3, 1).numpy()
    got = resize.resize(images, name="torch", size=299)
    np.testing.assert_allclose(got, expected, atol=2e-5)
