"""COCO's 80 object categories: ids 1 to 90 with ten gaps, as in the 2014 and 2017 annotations."""

_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, -, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
bear, zebra, giraffe, -, backpack, umbrella, -, -, handbag, tie, suitcase, frisbee, skis,
snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -,
dining table, -, -, toilet, -, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, -, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""  # by id, from 1; -: no category

COCO_CATEGORIES: dict[int, str] = {
    category_id: name.strip()
    for category_id, name in enumerate(_NAMES.split(","), start=1)
    if name.strip() != "-"
}
"""category_id to name."""
