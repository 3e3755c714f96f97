"""Networks of kinds that people deploy and no library of classifiers has, written out small."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class UNet(nn.Module):
    """Encoder and decoder with skips by concatenation, transposed convolutions upwards."""

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(
            self._double(b, a) for b, a in zip([3, *widths], widths, strict=False)
        )
        self.middle = self._double(4 * width, 8 * width)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths))
        self.join = nn.ModuleList(self._double(2 * w, w) for w in reversed(widths))
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _double(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return scores of every pixel."""
        skips = []
        for block in self.down:
            maps = block(maps)
            skips.append(maps)
            maps = functional.max_pool2d(maps, 2)
        maps = self.middle(maps)
        for rise, join in zip(self.up, self.join, strict=True):
            maps = join(torch.cat((skips.pop(), rise(maps)), 1))
        found: Tensor = self.head(maps)
        return found


def generator(noise: int = 64, width: int = 32) -> nn.Module:
    """The generator of DCGAN: transposed convolutions from a vector to an image."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(noise, 4 * width, 4, bias=False)]
    for before, after in ((4 * width, 2 * width), (2 * width, width)):
        layers += [nn.BatchNorm2d(before), nn.ReLU(True)]
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
    layers += [
        nn.BatchNorm2d(width),
        nn.ReLU(True),
        nn.ConvTranspose2d(width, 3, 4, 2, 1),
        nn.Tanh(),
    ]
    return nn.Sequential(*layers)


def spectral_discriminator(width: int = 32) -> nn.Module:
    """A discriminator whose convolutions are spectrally normalised."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [
            parametrizations.spectral_norm(nn.Conv2d(before, after, 4, 2, 1)),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 1))


def weight_normed_1d(width: int = 32, classes: int = 10) -> nn.Module:
    """Dilated 1-D convolutions with weight normalisation, as in temporal networks."""
    layers: list[nn.Module] = []
    for before, after, dilation in ((4, width, 1), (width, width, 2), (width, 2 * width, 4)):
        layer = nn.Conv1d(before, after, 3, padding=dilation, dilation=dilation)
        layers += [parametrizations.weight_norm(layer), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, classes)
    )


def plain_1d(width: int = 32, classes: int = 10) -> nn.Module:
    """Strided 1-D convolutions with BatchNorm, for signals."""
    layers: list[nn.Module] = []
    for before, after in ((4, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv1d(before, after, 5, 2, 2, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, classes)
    )


def plain_3d(width: int = 16, classes: int = 10) -> nn.Module:
    """3-D convolutions with BatchNorm, for volumes."""
    layers: list[nn.Module] = []
    for before, after in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv3d(before, after, 3, 2, 1, bias=False), nn.BatchNorm3d(after), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4 * width, classes)
    )


class ConvolutionThenLSTM(nn.Module):
    """Convolutions read an image, an LSTM its columns, as in text recognition (CRNN)."""

    def __init__(self, width: int = 32, classes: int = 12) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
            nn.AdaptiveAvgPool2d((1, None)),
        )
        self.lstm = nn.LSTM(2 * width, 48, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores that the last column gives."""
        columns = self.features(images).squeeze(2).transpose(1, 2)
        scores: Tensor = self.head(self.lstm(columns)[0][:, -1])
        return scores


class SubPixel(nn.Module):
    """Super-resolution by convolutions and a pixel shuffle (ESPCN)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.one, self.two = (
            nn.Conv2d(3, width, 5, padding=2),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.up = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()
        )
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return images of twice the side."""
        maps = functional.relu(self.two(functional.relu(self.one(images))))
        found: Tensor = self.last(self.up(maps))
        return found


class GatedConvolutions(nn.Module):
    """Convolutions whose halves gate each other (GLU)."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(b, 2 * width, 3, padding=1) for b in (3, width, width)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(2 * width) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Return class scores."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            maps = functional.glu(norm(layer(maps)), dim=1)
        scores: Tensor = self.head(maps.mean((2, 3)))
        return scores


class Transformer(nn.Module):
    """Patches, PyTorch's own encoder layers, a class token by the mean."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        scores: Tensor = self.head(self.encoder(tokens).mean(1))
        return scores


class OptionA(nn.Module):
    """A ResNet of three stages whose shortcuts are strided and padded with zeros."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        pairs = ((width, width), (width, 2 * width), (2 * width, 2 * width), (2 * width, 4 * width))
        self.blocks = nn.ModuleList(self._block(before, after) for before, after in pairs)
        self.head = nn.Linear(4 * width, classes)

    @staticmethod
    def _block(before: int, after: int) -> nn.Sequential:
        stride = 1 if before == after else 2
        return nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores."""
        maps = functional.relu(self.stem(images))
        for block in self.blocks:
            inner = block(maps)
            if inner.shape != maps.shape:
                missing = inner.shape[1] - maps.shape[1]
                half = missing // 2
                maps = functional.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, half, missing - half))
            maps = functional.relu(inner + maps)
        scores: Tensor = self.head(maps.mean((2, 3)))
        return scores


class TwoInputs(nn.Module):
    """An image and a vector of features, joined by concatenation."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.side = nn.Linear(6, 24)
        self.hidden, self.head = nn.Linear(2 * width + 24, 48), nn.Linear(48, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return class scores under `logits`; the side input is the images' corner."""
        corner = images[:, 0, :2, :3].flatten(1)
        side = functional.relu(self.side(corner))
        joined = torch.cat((self.features(images).mean((2, 3)), side), 1)
        return {"logits": self.head(functional.relu(self.hidden(joined)))}
