"""The PyTorch reference's YAML files: all that are shipped, their numbers, pairs, and refusals."""

import re
from pathlib import Path

import pytest

import maskrcnn
from engine.config.fields import ConfigError, override, settings
from engine.optim.plan import make_plan
from maskrcnn.config import conventions_of
from maskrcnn.nvidia.pytorch_yaml import read_run
from maskrcnn.nvidia.pytorch_yaml_keys import IGNORED, KEYS
from maskrcnn.settings import MaskRcnnConfig, base_config
from maskrcnn.validation import validate

CONFIGS = Path(maskrcnn.__file__).parent / "configs"
SHIPPED = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if re.search(r"_[RX]_(50|101)_", path.stem)  # the others are recipes of this project
)
MAIN = CONFIGS / "e2e_mask_rcnn_R_50_FPN_1x.yaml"

# Of each recipe: model, images per step, rate, iterations of drops and end, warm-up.
RECIPES = {
    "e2e_mask_rcnn_R_50_FPN_1x": ("r50-fpn", 96, 0.12, (12000, 16000), 16667, 800),
    "e2e_mask_rcnn_R_50_FPN_1x_2019": ("r50-fpn", 32, 0.04, (36000, 48000), 50000, 500),
    "e2e_mask_rcnn_R_50_FPN_1x_bs32": ("r50-fpn", 32, 0.04, (33000, 44000), 50000, 500),
    "e2e_mask_rcnn_R_50_FPN_1x_bs64": ("r50-fpn", 64, 0.08, (18000, 24000), 27500, 800),
    "e2e_mask_rcnn_R_50_FPN_1x_1GPU": ("r50-fpn", 4, 0.005, (240000, 320000), 360000, 500),
    "e2e_mask_rcnn_R_101_FPN_1x": ("r101-fpn", 16, 0.02, (60000, 80000), 90000, 500),
    "e2e_mask_rcnn_R_50_C4_1x": ("r50-c4", 8, 0.01, (120000, 160000), 180000, 500),
    "e2e_mask_rcnn_X_101_32x8d_FPN_1x": (
        *("x101-32x8d-fpn", 8, 0.01),
        *((120000, 160000), 180000, 500),
    ),
    "gn_baselines/scratch_e2e_mask_rcnn_R_50_FPN_3x_gn": (
        *("r50-fpn", 16, 0.02),
        *((210000, 250000), 270000, 500),
    ),
    "cityscapes/e2e_mask_rcnn_R_50_FPN_1x_cocostyle": ("r50-fpn", 16, 0.01, (18000,), 24000, 500),
}


def configured(path, *pairs, num_ranks=1, **kwargs):
    run = read_run(path, pairs, num_ranks=num_ranks, **kwargs)
    return override(base_config(run.model_name), run.overrides, source=str(path))


def plan_of(config, *, num_ranks=1, num_examples=1):
    return make_plan(config.train, config.optim, num_examples=num_examples, num_ranks=num_ranks)


def test_nothing_documented_is_missing():
    stems = [Path(name).with_suffix("") for name in SHIPPED]
    assert len(stems) == 43
    assert {f"{path}" for path in stems} >= set(RECIPES)
    folders = {}
    for path in stems:
        folders.setdefault(str(path.parent), []).append(path.name)
    assert {folder: len(names) for folder, names in folders.items()} == {
        ".": 12,
        "caffe2": 8,
        "ci": 2,
        "cityscapes": 2,
        "gn_baselines": 8,
        "pascal_voc": 3,
        "quick_schedules": 8,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_documented_numbers(name):
    model, batch, rate, drops, end, warmup = RECIPES[name]
    path = CONFIGS / f"{name}.yaml"
    ranks = 4 if batch % 4 == 0 else 1
    config = configured(path, num_ranks=ranks, num_examples=1)
    assert read_run(path, num_ranks=1).model_name == f"maskrcnn-{model}"
    plan = plan_of(config, num_ranks=ranks)
    assert plan.global_batch_size == batch and config.train.batch_size == batch // ranks
    assert plan.learning_rate == pytest.approx(rate)
    assert plan.total_steps == end and plan.warmup_steps == warmup
    steps = [share * plan.steps_per_epoch for share in config.optim.lr_step_epochs]
    assert steps == pytest.approx(list(drops))
    assert 2000 <= plan.steps_per_epoch <= 3000 and plan.stop_epoch == config.train.num_epochs


def test_network_of_the_main_recipe():
    config = configured(MAIN)
    model = config.model
    assert (model.stride_in, model.padding) == ("1x1", "symmetric")
    assert conventions_of(model).mean_rgb == (122.7717, 115.9465, 102.9801)
    assert model.roi_sampling_ratio == 2 and model.roi_levels == (2, 3, 4, 5)
    assert model.canvas_sizes[0] == (800, 1344)
    assert config.rpn.train_rpn_post_nms_topn == 1000  # 12000 for the 12 images of a rank
    assert config.roi.bbox_reg_weights == (10.0, 10.0, 5.0, 5.0)
    assert config.solver.bias_lr_factor == 2.0
    assert config.optim.lr_warmup_init == pytest.approx(0.12 * 1e-4)
    assert config.runtime.precision == "float32"


def test_one_step_of_mlperf_warm_up_never_starts_below_zero():
    config = configured(CONFIGS / "ci" / "e2e_mask_rcnn_R_50_FPN_1x_1gpu.yaml")
    assert config.optim.lr_warmup_init == 0.0
    config = configured(CONFIGS / "e2e_mask_rcnn_R_50_FPN_1x_bs64.yaml")
    assert config.optim.lr_warmup_init == pytest.approx(0.0, abs=1e-12)
    config = configured(MAIN, "SOLVER.WARMUP_METHOD", "mlperf_linear", "SOLVER.WARMUP_ITERS", "400")
    assert config.optim.lr_warmup_init == pytest.approx(0.08)


def test_constant_warm_up():
    pairs = ("SOLVER.WARMUP_METHOD", "constant", "SOLVER.WARMUP_FACTOR", "0.5")
    optim = configured(MAIN, *pairs).optim
    assert (optim.lr_warmup_method, optim.lr_warmup_init) == ("constant", 0.06)


def test_pairs_win_over_the_file():
    config = configured(
        MAIN,
        *("SOLVER.BASE_LR", "0.02", "SOLVER.IMS_PER_BATCH", "16", "SOLVER.STEPS", "(60000,80000)"),
        *("SOLVER.MAX_ITER", "90000", "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", "2000"),
        *("MODEL.RPN.POST_NMS_TOP_N_TRAIN", "300"),
        *("DTYPE", "float16", "OUTPUT_DIR", "/results", "MODEL.MASK_ON", "False"),
        num_ranks=8,
    )
    plan = plan_of(config, num_ranks=8)
    assert (plan.learning_rate, plan.total_steps) == (pytest.approx(0.02), 90000)
    assert config.train.batch_size == 2 and config.eval.eval_batch_size == 1
    assert config.rpn.train_rpn_post_nms_topn == 1000
    assert (config.rpn.train_rpn_level_topn, config.rpn.test_rpn_level_topn) == (300, 1000)
    assert config.runtime.precision == "mixed_float16" and config.train.model_dir == "/results"
    assert not config.model.include_mask


def test_accumulation_makes_the_batch_larger_and_not_the_rate():
    pairs = ("SOLVER.ACCUMULATE_GRAD", "True", "SOLVER.ACCUMULATE_STEPS", "4")
    config = configured(MAIN, *pairs, "SOLVER.IMS_PER_BATCH", "24", num_ranks=8)
    plan = plan_of(config, num_ranks=8)
    assert plan.global_batch_size == 96 and plan.learning_rate == pytest.approx(0.12)
    assert plan.total_steps == 16667


def test_evaluation_each_epoch_counts_real_epochs():
    pairs = ("PER_EPOCH_EVAL", "True", "MIN_BBOX_MAP", "0.4", "MIN_MASK_MAP", "0.35")
    config = configured(MAIN, *pairs, num_ranks=8, num_examples=117266)
    plan = plan_of(config, num_ranks=8, num_examples=117266)
    assert plan.steps_per_epoch == 1222 and config.train.num_epochs == 14
    assert plan.warmup_steps == pytest.approx(800, abs=1)
    assert (config.eval.target_ap, config.test.target_mask_ap) == (0.4, 0.35)
    assert (config.eval.eval_start, config.eval.eval_period) == (1, 1)


def test_data_sets_results_and_notes():
    pairs = ("TEST.EXPECTED_RESULTS", "[['bbox','AP',[0.377,0.001]]]")
    run = read_run(CONFIGS / "e2e_mask_rcnn_R_101_FPN_1x.yaml", pairs, num_ranks=1)
    assert run.train_sets == ("coco_2014_train", "coco_2014_valminusminival")
    assert run.test_sets == ("coco_2014_minival",)
    assert run.expected_results == (["bbox", "AP", [0.377, 0.001]],) and run.sigma_tolerance == 4.0
    quick = read_run(CONFIGS / "quick_schedules" / "rpn_R_50_C4_quick.yaml", num_ranks=1)
    assert any("tested at the training size (600, 1000)" in note for note in quick.notes)


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("catalog://ImageNetPretrained/MSRA/R-50-GN", ("train.backbone_init", "w/R-50-GN.pkl")),
        (
            "catalog://Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x",
            ("train.pretrained_ckpt", "w/e2e_mask_rcnn_R-50-FPN_1x.pkl"),
        ),
        ("/data/resnet50.pth", ("train.backbone_init", "/data/resnet50.pth")),
        ("out/model_0090000.pth", ("train.pretrained_ckpt", "out/model_0090000.pth")),
        ("", ("train.backbone_init", "")),
    ],
)
def test_weights(weight, place):
    run = read_run(MAIN, ["MODEL.WEIGHT", weight], num_ranks=1, weights_dir="w")
    assert run.overrides[place[0]] == place[1]


def test_other_aspects_and_sizes():
    config = configured(
        CONFIGS / "e2e_faster_rcnn_R_50_C4_1x.yaml",
        *("MODEL.RPN.ASPECT_RATIOS", "(0.25, 1.0)", "MODEL.RPN.ANCHOR_SIZES", "(64, 128)"),
        *("INPUT.MIN_SIZE_TRAIN", "(600,)"),
    )
    assert config.model.aspect_ratios == ((2.0, 0.5), (1.0, 1.0))
    assert config.model.num_anchors_per_cell == 4
    assert config.model.image_size == (600, 1333)


@pytest.mark.parametrize("sides", ["(640, 672, 800)", "[800, 640]"])
def test_several_training_sizes_are_multi_scale_training(sides):
    pairs = ("INPUT.MIN_SIZE_TRAIN", sides)
    config = configured(MAIN, *pairs)
    assert config.model.image_size == (800, 1333)
    assert (config.data.jitter_min, config.data.jitter_max) == (0.8, 1.0)
    assert any("from 640 to 800" in note for note in read_run(MAIN, pairs, num_ranks=1).notes)
    assert configured(MAIN).data.jitter_min == 1.0


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("SOLVER.BASELR", "0.02"), "unknown key 'SOLVER.BASELR'; did you mean 'SOLVER.BASE_LR'"),
        (("SOLVER.BASE_LR",), "'SOLVER.BASE_LR' has no value"),
        (("SOLVER.MAX_ITER", "many"), "SOLVER.MAX_ITER: expected int as in 40000, got 'many'"),
        (("SOLVER.MAX_ITER", "90000.5"), "MAX_ITER: expected int as in 40000, got 90000.5"),
        (("SOLVER.BASE_LR", "True"), "BASE_LR: expected float as in 0.001, got True"),
        (("MODEL.MASK_ON", "1"), "MODEL.MASK_ON: expected bool"),
        (("MODEL.RPN.ASPECT_RATIOS", "(0, 1)"), r"RATIOS=\(0, 1\): expected numbers above 0"),
        (("DATASETS.TRAIN", "coco_2014_train"), "DATASETS.TRAIN: expected tuple"),
        (("SOLVER.STEPS", "('a',)"), "SOLVER.STEPS: expected numbers"),
        (("INPUT.MIN_SIZE_TRAIN", "()"), "INPUT.MIN_SIZE_TRAIN=.*expected one or more"),
        (("INPUT.MIN_SIZE_TRAIN", "('s',)"), "INPUT.MIN_SIZE_TRAIN: expected numbers"),
        (("DTYPE", "fp16"), "DTYPE='fp16'.*did you mean 'float16'"),
        (("MODEL.BACKBONE.CONV_BODY", "R-152-FPN"), "CONV_BODY='R-152-FPN'"),
        (("MODEL.RESNETS.NUM_GROUPS", "64"), r"NUM_GROUPS, WIDTH_PER_GROUP=\(64, 64\)"),
        (("MODEL.RESNETS.TRANS_FUNC", "BottleneckWithGN"), "same norm in both"),
        (("MODEL.RPN.ANCHOR_STRIDE", "(16,)"), r"ANCHOR_STRIDE=\(16,\): expected \(4, 8, 16"),
        (("MODEL.ROI_MASK_HEAD.RESOLUTION", "14"), "RESOLUTION=14: expected 28"),
        (("MODEL.ROI_BOX_HEAD.PREDICTOR", "FastRCNNPredictor"), "expected 'FPNPredictor'"),
        (("MODEL.ROI_MASK_HEAD.PREDICTOR", "MaskRCNNConv1x1Predictor"), "'MaskRCNNC4Predictor'"),
        (("DATALOADER.SIZE_DIVISIBILITY", "64"), "=64: expected 0 or a divisor of 32"),
        (("DATALOADER.SIZE_DIVISIBILITY", "-1"), "=-1: expected 0 or a divisor of 32"),
        (("SOLVER.WARMUP_METHOD", "konstant"), "WARMUP_METHOD='konstant'.*mean 'constant'"),
        (("SOLVER.IMS_PER_BATCH", "12"), "IMS_PER_BATCH=12: expected a multiple of the 8 ranks"),
        (("MODEL.WEIGHT", "https://x/R-50.pkl"), "download the file"),
        (("MODEL.WEIGHT", "catalog://ImageNetPretrained/MSRA/R-51"), "did you mean 'MSRA/R-50'"),
    ],
)
def test_refusals(pairs, message):
    with pytest.raises(ConfigError, match=message):
        read_run(MAIN, pairs, num_ranks=8)


def test_what_is_built_anyway_may_be_named():
    res5 = ("MODEL.ROI_BOX_HEAD.PREDICTOR", "FastRCNNPredictor")
    assert read_run("", [*res5, "DATALOADER.SIZE_DIVISIBILITY", "16"], num_ranks=8) == read_run(
        "", num_ranks=8
    )


@pytest.mark.parametrize("text", ["_BASE_: ../Base-RCNN-FPN.yaml", "MODEL: {}\nVERSION: 2"])
def test_files_of_detectron2_are_sent_to_the_flags(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml: a file of Detectron2.* use --model_name"):
        read_run(path, num_ranks=1)


def test_unknown_key_in_a_file_names_file_and_nearest(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("MODEL:\n  RPN:\n    PRE_NMS_TOPN_TRAIN: 2000\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key.*PRE_NMS_TOP_N_TRAIN"):
        read_run(path, num_ranks=1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_run("nowhere.yaml", num_ranks=1)


def test_a_head_that_does_not_fit_the_body_is_an_error():
    pair = ("MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR", "ResNet50Conv5ROIFeatureExtractor")
    with pytest.raises(ConfigError, match="box_head=res5"):
        validate(configured(MAIN, *pair))


def test_defaults_alone_are_faster_rcnn_r50_c4():
    config = configured("")
    assert config.model.name == "fasterrcnn-r50-c4"
    assert config.optim.weight_decay == 5e-4 and plan_of(config).total_steps == 40000


def test_keys_lead_to_settings_that_exist():
    fields = settings(MaskRcnnConfig)
    for name, key in KEYS.items():
        assert name not in IGNORED
        assert key.target is None or key.target in fields, name
