"""Encoders, query initialisation and decoders."""

from codetr.transformers.decoder import AnchorPosition, DeformableDecoder, DeformableDecoderLayer
from codetr.transformers.encoder import DeformableEncoder, DeformableEncoderLayer
from codetr.transformers.learned import LearnedQueries
from codetr.transformers.mixed_layer import CrossFirstDecoderLayer
from codetr.transformers.queries import MixedQueries, PositionedQueries, ProposalStage
from codetr.transformers.tables import QueryTable

__all__ = [
    "AnchorPosition",
    "CrossFirstDecoderLayer",
    "DeformableDecoder",
    "DeformableDecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "LearnedQueries",
    "MixedQueries",
    "PositionedQueries",
    "ProposalStage",
    "QueryTable",
]
