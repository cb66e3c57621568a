"""The smallest sizes that both our recipes and the baseline take."""

TINY = (
    "model.dim=64",
    "model.heads=4",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "model.backbone.name=resnet10t",
    "supervision.regions.fc_dim=32",
    "supervision.regions.samples=16",
    "supervision.regions.proposals=40",
    "supervision.regions.proposals_per_level=40",
)
TINY_CO_DINO = (*TINY, "supervision.denoising_queries=6", "supervision.positive_queries=10")
EXPERIMENT = "co_dino_5scale_r50_1x_coco"
PAIR = "deformable_detr_two_stage_r50_1x_coco"
