from __future__ import annotations

import torch
from torch import Tensor

from common.data.masked_images import MaskedImages
from common.data.normalization import Normalization

PLAIN = Normalization((0.0,), (1.0,))


def discs(count: int, size: int = 48, classes: int = 1) -> MaskedImages:
    """A white disc off the centre, grey around it, and the same disc as the mask of every class."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = (x - size // 4) ** 2 + (y - size // 3) ** 2 < (size // 6) ** 2
    images = torch.where(disc, 200, 40).to(torch.uint8).expand(count, 1, -1, -1)
    return MaskedImages(images, disc.expand(count, classes, -1, -1), PLAIN, augment=True)


def centres(masks: Tensor) -> Tensor:
    """Centre of mass ``(N, 2)`` of masks ``(N, H, W)``, from -1 to 1 in both directions."""
    place = torch.linspace(-1, 1, masks.shape[-1])
    weight = masks / masks.sum((1, 2), keepdim=True)
    return torch.stack([(weight * place[:, None]).sum((1, 2)), (weight * place).sum((1, 2))], dim=1)


def test_image_and_mask_move_together() -> None:
    torch.manual_seed(0)
    inputs, masks = discs(60)[range(60)]
    assert (inputs.shape, masks.shape) == ((60, 3, 48, 48), (60, 1, 48, 48))
    assert masks.unique().tolist() == [0, 1]
    seen = (inputs[:, 0] > 0.5).float()
    overlap = (seen * masks[:, 0]).sum((1, 2)) * 2 / (seen + masks[:, 0]).sum((1, 2))
    assert overlap.min() > 0.93


def test_every_class_has_the_same_move() -> None:
    torch.manual_seed(0)
    _, masks = discs(10, classes=3)[range(10)]
    assert torch.equal(masks[:, 0], masks[:, 1])
    assert torch.equal(masks[:, 0], masks[:, 2])


def test_flips_and_small_rotations_each_image_for_itself() -> None:
    torch.manual_seed(0)
    _, masks = discs(200)[range(200)]
    found = centres(masks[:, 0])
    still = centres(discs(1).masks[:, 0].float())[0]
    quarters = (found.sign() * still.sign()).unique(dim=0)
    assert len(quarters) == 4  # neither flip, one, the other, both
    turned = torch.atan2(found[:, 0].abs(), found[:, 1].abs()) - torch.atan2(still[0].abs(), still[1].abs())
    degrees = turned.rad2deg()
    assert 8 < degrees.abs().max() < 11.5
    assert degrees.min() < -8
    assert 3 < degrees.abs().mean() < 7


def test_brightness_and_contrast_stay_within_a_tenth() -> None:
    torch.manual_seed(0)
    inputs, masks = discs(200)[range(200)]
    inside = torch.stack([image[0][mask[0] > 0].median() for image, mask in zip(inputs, masks, strict=True)]) * (
        255 / 200
    )
    assert 0.78 < inside.min() < 0.9
    assert 1.08 < inside.max() < 1.25
    assert len(inside.unique()) > 30


def test_the_global_seed_fixes_what_is_drawn_and_nothing_else_does() -> None:
    data = discs(4)
    torch.manual_seed(5)
    one, two = data[range(4)], data[range(4)]
    torch.manual_seed(5)
    again = data[range(4)]
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[1], two[1])


def test_without_augmentation_nothing_is_changed() -> None:
    data = discs(3)
    data.augment = False
    inputs, masks = data[[2, 0]]
    assert torch.equal(inputs[:, 1], data.images[[2, 0], 0] / 255)
    assert torch.equal(masks, data.masks[[2, 0]].float())
