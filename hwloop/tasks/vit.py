"""torchvision's ViT, with as many channels as its tokens have."""

from __future__ import annotations

from torchvision.models.vision_transformer import VisionTransformer


class AnyWidthViT(VisionTransformer):  # type: ignore[misc]
    """It reshapes patches to the width of its class token, and not to what it was made with."""

    @property
    def hidden_dim(self) -> int:
        return int(self.class_token.shape[-1])

    @hidden_dim.setter
    def hidden_dim(self, width: int) -> None:
        """What the constructor says, the token says as well."""
