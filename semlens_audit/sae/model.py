"""The TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093)."""

from __future__ import annotations

from pathlib import Path

import torch

from semlens_audit.errors import SubjectError
from semlens_audit.sae_header import Training, read_dictionary
from semlens_audit.weights import read_state

__all__ = ["SparseAutoencoder", "load_autoencoder", "topk_latents"]


def topk_latents(pre: torch.Tensor, k: int) -> torch.Tensor:
    """All but the k largest values of each row set to zero, and negative ones among these too (equation 3, followed by a ReLU).

    Parameters
    ----------
    pre
        (..., F) values before the activation function.
    k
        1 to F.

    Returns
    -------
    torch.Tensor
        (..., F), not negative.
    """
    if k >= pre.shape[-1]:
        return torch.relu(pre)
    largest, place = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, place, torch.relu(largest))


class SparseAutoencoder(torch.nn.Module):
    """``z = relu(topk((x / scale - b_dec) W_enc + b_enc))``, ``x^ = scale (z W_dec + b_dec)``.

    As in equations 1 and 3 of Gao et al., with b_pre called b_dec as most files do. The release of that paper takes the ReLU after
    TopK too: latents are never negative, so that "active" has one meaning.

    Parameters
    ----------
    encoder
        W_enc, (d, F) float32.
    decoder
        W_dec, (F, d) float32; a row is a latent's direction.
    encoder_bias, decoder_bias
        b_enc, (F,), and b_dec, (d,).
    k
        Latents that are active at most.
    scale
        What vectors are divided by before they are read: the mean length of those it was trained on.
    """

    def __init__(
        self,
        encoder: torch.Tensor,
        decoder: torch.Tensor,
        encoder_bias: torch.Tensor,
        decoder_bias: torch.Tensor,
        k: int,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if decoder.shape != encoder.T.shape or encoder_bias.shape != encoder.shape[1:] or decoder_bias.shape != decoder.shape[1:]:
            raise ValueError("encoder, decoder and biases do not fit each other")
        if not 1 <= k <= len(decoder):
            raise ValueError(f"k is {k}, of {len(decoder)} latents")
        # Plain parameters: a linear layer would tell those who ask that the network has its components last.
        self.W_enc = torch.nn.Parameter(encoder.contiguous())
        self.W_dec = torch.nn.Parameter(decoder.contiguous())
        self.b_enc = torch.nn.Parameter(encoder_bias.contiguous())
        self.b_dec = torch.nn.Parameter(decoder_bias.contiguous())
        self.k, self.scale = k, float(scale)

    @property
    def width(self) -> int:
        """d, values in a vector."""
        return int(self.W_enc.shape[0])

    @property
    def components(self) -> int:
        """F, latents."""
        return int(self.W_enc.shape[1])

    def preactivations(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., F) values of the latents of (..., d) vectors before TopK."""
        return (vectors / self.scale - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., F) latents of (..., d) vectors, not negative, at most k of them other than zero."""
        return topk_latents(self.preactivations(vectors), self.k)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(..., d) reconstruction from (..., F) latents."""
        return self.scale * (latents @ self.W_dec + self.b_dec)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., d) reconstruction of (..., d) vectors."""
        return self.decode(self.encode(vectors))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds, see `semlens_audit.sae_header.TENSORS`: single precision, on the CPU."""
        values = {name: value.detach().float().cpu().contiguous() for name, value in self.named_parameters()}
        return {**values, "scale": torch.tensor(self.scale, dtype=torch.float32)}


def load_autoencoder(path: Path, k: int | None = None) -> tuple[SparseAutoencoder, Training | None]:
    """Load an autoencoder, strictly: every tensor has to be there, of its shape and finite; nothing is filled in.

    Parameters
    ----------
    path
        A safetensors file, see `semlens_audit.sae_header.read_dictionary`.
    k
        Latents that are active at most, for a file that does not say.

    Returns
    -------
    autoencoder : SparseAutoencoder
        Without gradients for its parameters.
    training : Training or None
        What the file says of itself.

    Raises
    ------
    SubjectError
        ``bad-autoencoder``: another file, or tensors that do not fit or are not finite; ``autoencoder-without-k``: nobody says k;
        ``other-k``: the file says another.
    """
    found = read_dictionary(path)
    said = found.training.k if found.training is not None else None
    if said is not None and k is not None and k != said:
        raise SubjectError("other-k", f"The autoencoder was trained with k = {said}, not {k}.", "Leave `k` out.", file=str(path))
    wanted = said if said is not None else k
    if wanted is None:
        raise SubjectError(
            "autoencoder-without-k",
            "The file does not say how many latents are active at most.",
            f"Write `k` beside it in the audit; {found.latents} for an autoencoder with ReLU.",
            file=str(path),
        )
    if wanted > found.latents:
        raise SubjectError(
            "bad-autoencoder", f"{wanted} of {found.latents} latents cannot be active.", "Mend `k` in the audit.", file=str(path)
        )
    state = {name: tensor.float() for name, tensor in read_state(path).items()}
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    scale = float(state["scale"]) if "scale" in state else 1.0
    if broken or scale <= 0:
        what = f"{', '.join(broken)} hold NaN or infinities" if broken else f"it divides by {scale}"
        raise SubjectError("bad-autoencoder", f"The autoencoder cannot be used: {what}.", "Train it anew.", file=str(path))
    autoencoder = SparseAutoencoder(state["W_enc"], state["W_dec"], state["b_enc"], state["b_dec"], wanted, scale)
    return autoencoder.eval().requires_grad_(False), found.training
