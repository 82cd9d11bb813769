"""TOE's text decoder against numbers of the published implementation (data/reference/toe/CASES.md
says how they were made)."""

import zlib

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from oodnb.toe.decoder_training import make_decoder
from reference import cases, close


def of_case(case):
    """The decoder of a case, its weights drawn from the names of its parameters."""
    decoder = make_decoder(
        case["image_features"].shape[1],
        int(case["vocab_size"]),
        int(case["layers"]),
        int(case["heads"]),
        int(case["intermediate"]),
        int(case["max_positions"]),
    )
    for name, parameter in decoder.model.named_parameters():
        draws = np.random.Generator(
            np.random.PCG64((zlib.crc32(name.encode()) + int(case["weight_seed"])) % 2**32)
        )
        z = torch.from_numpy(draws.standard_normal(tuple(parameter.shape)).astype(np.float32))
        parameter.data.copy_(1 + 0.05 * z if name.endswith("LayerNorm.weight") else 0.2 * z)
    return decoder


@pytest.mark.parametrize("case", cases("toe", "*_decoder*.npz"))
def test_decoder(case):
    decoder, features = of_case(case), torch.from_numpy(case["image_features"])
    logits = decoder.first_logits(features)
    close(logits, case["first_step_logits"], rtol=1e-4, atol=1e-5)
    assert (
        logits.argsort(dim=1, descending=True)[:, 30:55].numpy() == case["token_ids_rank31_55"]
    ).all()
    close(
        decoder.first_logits(features, batch_size=1),
        case["first_step_logits"],
        rtol=1e-4,
        atol=1e-5,
    )
    ids, mask = torch.from_numpy(case["caption_ids"]), torch.from_numpy(case["caption_mask"])
    with torch.no_grad():
        close(decoder.caption_loss(features, ids, mask), case["caption_loss"], rtol=1e-4)
        close(
            decoder.caption_loss(features.double(), ids.int(), mask.bool()),
            case["caption_loss"],
            rtol=1e-4,
        )
