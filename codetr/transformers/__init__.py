"""Encoders, query initialisation and decoders."""

from codetr.transformers.decoder import AnchorPosition, DeformableDecoder, DeformableDecoderLayer
from codetr.transformers.encoder import DeformableEncoder, DeformableEncoderLayer
from codetr.transformers.queries import MixedQueries, PositionedQueries, ProposalStage

__all__ = [
    "AnchorPosition",
    "DeformableDecoder",
    "DeformableDecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "MixedQueries",
    "PositionedQueries",
    "ProposalStage",
]
