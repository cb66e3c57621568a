"""Encoders, query initialisation and decoders."""

from codetr.models.transformers.anchors import (
    AnchorQueries,
    Patterns,
    PointQueries,
    UnknownLabel,
)
from codetr.models.transformers.conditional import (
    AnchorSpatial,
    ConditionalDecoder,
    ConditionalDecoderLayer,
    PointSpatial,
)
from codetr.models.transformers.decoder import (
    AnchorPosition,
    CrossFirstDecoderLayer,
    DeformableDecoder,
    DeformableDecoderLayer,
)
from codetr.models.transformers.dense_encoder import DenseEncoder, DenseEncoderLayer
from codetr.models.transformers.encoder import DeformableEncoder, DeformableEncoderLayer
from codetr.models.transformers.identity import IdentityEncoder
from codetr.models.transformers.learned import LearnedQueries
from codetr.models.transformers.protocol import Decoder, Encoder, QueryInit
from codetr.models.transformers.queries import MixedQueries, PositionedQueries, ProposalStage
from codetr.models.transformers.read_first import IdentityDecoder, ReadFirstDecoder
from codetr.models.transformers.tables import QueryForm, QueryTable
from codetr.models.transformers.token_queries import ProjectedTokenQueries, TokenQueries

__all__ = [
    "AnchorPosition",
    "AnchorQueries",
    "AnchorSpatial",
    "ConditionalDecoder",
    "ConditionalDecoderLayer",
    "CrossFirstDecoderLayer",
    "Decoder",
    "DeformableDecoder",
    "DeformableDecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "DenseEncoder",
    "DenseEncoderLayer",
    "Encoder",
    "IdentityDecoder",
    "IdentityEncoder",
    "LearnedQueries",
    "MixedQueries",
    "Patterns",
    "PointQueries",
    "PointSpatial",
    "PositionedQueries",
    "ProjectedTokenQueries",
    "ProposalStage",
    "QueryForm",
    "QueryInit",
    "QueryTable",
    "ReadFirstDecoder",
    "TokenQueries",
    "UnknownLabel",
]
