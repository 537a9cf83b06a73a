"""The bundled kind of decoder: what it sees, and that tiles agree with the whole picture in bounded memory."""

import pytest
import torch
from torch import Tensor, nn

from walloc_data.codec import WallocCodec, model
from walloc_data.codec.decoders import ConvDecoder, build_decoder, decode_tiled, decode_tiles, halo_cells
from walloc_data.codec.wavelets import wavelet_synthesis
from walloc_data.errors import CodecError

SMALL = {"kind": "conv", "width": 16, "blocks": 3, "groups": 2}


def small_decoder() -> ConvDecoder:
    torch.manual_seed(0)
    return build_decoder(SMALL, latent_dim=12, out_channels=192).eval()


def latents(h: int, w: int, *, batch: int = 1) -> Tensor:
    return torch.randint(-40, 41, (batch, 12, h, w), generator=torch.Generator().manual_seed(h * w)).float()


@pytest.mark.parametrize(("h", "w"), [(40, 56), (33, 9), (9, 70), (17, 17), (16, 32), (1, 40), (3, 2)])
def test_tiles_and_the_whole_agree(h: int, w: int) -> None:
    decoder, v = small_decoder(), latents(h, w)
    with torch.no_grad():
        whole = wavelet_synthesis(decoder(v), 3)
        tiled = decode_tiled(decoder, v, J=3, halo=decoder.halo_cells, tile_cells=16)
    assert tiled.shape == (1, 3, 8 * h, 8 * w)
    assert (tiled - whole).abs().max() < 1e-4


@pytest.mark.parametrize("J", [1, 2, 4])
def test_tiles_agree_at_other_depths(J: int) -> None:
    torch.manual_seed(J)
    decoder = build_decoder(SMALL, latent_dim=12, out_channels=3 * 4**J).eval()
    v = latents(20, 13, batch=2)
    with torch.no_grad():
        tiled = decode_tiled(decoder, v, J=J, halo=decoder.halo_cells, tile_cells=8)
        assert (tiled - wavelet_synthesis(decoder(v), J)).abs().max() < 1e-4


def test_a_cell_depends_on_its_halo_alone() -> None:
    decoder = small_decoder()
    v = latents(24, 24)
    other = v.clone()
    other[:, :, 12, 12] += 50
    with torch.no_grad():
        changed = (decoder(v) != decoder(other)).any(1)[0]
    rows, columns = changed.nonzero().unbind(1)
    reach = decoder.halo_cells
    assert (rows.min(), rows.max()) == (12 - reach, 12 + reach)
    assert (columns.min(), columns.max()) == (12 - reach, 12 + reach)


def test_no_piece_grows_with_the_picture() -> None:
    decoder, seen = small_decoder(), []

    def network(piece: Tensor) -> Tensor:
        seen.append(piece.shape[2] * piece.shape[3])
        return decoder(piece)

    with torch.no_grad():
        for _ in decode_tiles(network, latents(100, 70), J=3, halo=decoder.halo_cells, tile_cells=16):
            pass
    margin = 2 * (decoder.halo_cells + 4)  # of the network, and of the synthesis
    assert max(seen) <= (16 + margin) ** 2


def test_a_codec_decodes_large_pictures_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = WallocCodec(decoder=small_decoder(), linear_decoder=nn.Conv2d(12, 192, 1)).eval()
    z = latents(196, 40, batch=2).to(torch.int8)
    monkeypatch.setattr(model, "_WHOLE_CELLS", 2**30)
    whole, linear = codec.decode(z), codec.decode(z, linear=True)
    monkeypatch.setattr(model, "_WHOLE_CELLS", 100)
    assert (codec.decode(z) - whole).abs().max() < 1e-4
    assert (codec.decode(z, linear=True) - linear).abs().max() < 1e-4


def test_a_decoder_that_sees_everything_is_not_tiled() -> None:
    assert halo_cells(small_decoder()) == 4
    assert halo_cells(nn.Conv2d(12, 192, 1)) == 0
    assert halo_cells(nn.Sequential(nn.GroupNorm(4, 12), nn.Conv2d(12, 192, 1))) is None


def test_any_batch_gives_the_same_pictures() -> None:
    decoder, v = small_decoder(), latents(12, 9, batch=3)
    with torch.no_grad():
        torch.testing.assert_close(decoder(v), torch.cat([decoder(v[i : i + 1]) for i in range(3)]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**9}, r"width must be an integer in \[1, 2048\], not 1000000000"),
        ({"blocks": "5"}, "blocks must be an integer"),
        ({"groups": 3}, "groups 3 must divide width 16"),
        ({"attention": True}, r"unknown settings \['attention'\]"),
    ],
)
def test_a_description_beyond_what_we_build_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        build_decoder(SMALL | change, latent_dim=12, out_channels=192)
