"""Detectors: ONNX files of YOLO networks, made here so that what they find is known, and names to detectors."""

import logging
from pathlib import Path

import numpy as np
import pytest
from webui_diffusers.loaders.detectors.library import DetectorLibrary
from webui_diffusers.loaders.detectors.yolo import YoloDetector, letterbox, read_yolo_rows
from webui_diffusers.loaders.weight_files import WeightFileError


onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CELL, SIDE, BOX = 32, 320, 40.0  # a cell of the network, its input, the boxes that it gives
PROTOS = 2


def bright_cells(path: Path, *, open_size: bool = False, masks: bool = False, half: bool = False) -> Path:
    """A YOLOv8-like network of two classes: class 0 is how red a cell is, class 1 how blue; a box of BOX x BOX pixels
    sits on the middle of each cell. With `masks`, prototype 0 is 1 in the upper half and -1 in the lower."""
    h, maker, number = onnx.helper, onnx.TensorProto, onnx.numpy_helper.from_array
    cells = SIDE // CELL
    real = maker.FLOAT16 if half else maker.FLOAT
    middles = (np.arange(cells) + 0.5) * CELL
    grid = np.stack([np.tile(middles, cells), np.repeat(middles, cells), *[np.full(cells**2, BOX)] * 2])
    kind = np.float16 if half else np.float32
    extra = np.concatenate([np.ones((1, cells**2)), np.zeros((PROTOS - 1, cells**2))]) if masks else None
    tensors = [
        number(grid[None].astype(kind), "grid"),
        number(np.array([1, 3, cells**2], np.int64), "flat"),
        number(np.array([0, 2], np.int64), "red_and_blue"),
    ]
    nodes = [
        h.make_node("AveragePool", ["images"], ["means"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        h.make_node("Reshape", ["means", "flat"], ["rows"]),
        h.make_node("Gather", ["rows", "red_and_blue"], ["scores"], axis=1),
    ]
    parts = ["grid", "scores"]
    outputs = [h.make_tensor_value_info("output0", real, None)]
    if masks:
        protos = np.zeros((1, PROTOS, SIDE // 4, SIDE // 4))
        protos[0, 0, : SIDE // 8], protos[0, 0, SIDE // 8 :] = 1, -1
        tensors += [number(extra[None].astype(kind), "extra"), number(protos.astype(kind), "output1")]
        parts.append("extra")
        outputs.append(h.make_tensor_value_info("output1", real, None))
    nodes.append(h.make_node("Concat", parts, ["output0"], axis=1))
    size = ["height", "width"] if open_size else [SIDE, SIDE]
    graph = h.make_graph(nodes, "bright", [h.make_tensor_value_info("images", real, [1, 3, *size])], outputs, tensors)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8)
    onnx.helper.set_model_props(model, {"names": "{0: 'red', 1: 'blue'}", "task": "detect"})
    onnx.save(model, path)
    return path


def picture_with(*boxes: tuple, size: tuple[int, int] = (320, 320)) -> np.ndarray:
    """(h, w, 3) black with boxes (x1, y1, x2, y2, channel)."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    for x1, y1, x2, y2, channel in boxes:
        picture[y1:y2, x1:x2, channel] = 255
    return picture


@pytest.mark.parametrize("half", [False, True])
def test_boxes_are_found_where_they_are(tmp_path: Path, half: bool):
    detect = YoloDetector(bright_cells(tmp_path / "bright.onnx", half=half))
    boxes, scores, masks = detect(picture_with((64, 96, 96, 128, 0), (256, 32, 280, 64, 2)))
    np.testing.assert_allclose(boxes, [[60, 92, 100, 132], [252, 28, 292, 68]], atol=1e-3)
    np.testing.assert_allclose(scores, [1.0, 0.75], atol=1e-2)
    assert masks is None


def test_boxes_come_back_through_the_letterbox(tmp_path: Path):
    """640x320 is halved and lies between borders of 80 input pixels above and below: two cells and a half."""
    detect = YoloDetector(bright_cells(tmp_path / "bright.onnx"))
    boxes, _, _ = detect(picture_with((128, 32, 192, 96, 0), size=(640, 320)), 0.9)
    np.testing.assert_allclose(boxes, [[120, 24, 200, 104]], atol=1e-3)


def test_only_the_classes_asked_for_are_found(tmp_path: Path):
    detect = YoloDetector(bright_cells(tmp_path / "bright.onnx"))
    picture = picture_with((64, 96, 96, 128, 0), (256, 32, 288, 64, 2))
    assert detect.names == ["red", "blue"]
    assert len(detect(picture, classes=["blue"])[0]) == 1
    with pytest.raises(ValueError, match="Did you mean 'blue'"):
        detect(picture, classes=["bleu"])


def test_boxes_that_overlap_are_one_unless_of_another_class(tmp_path: Path):
    rows = np.array([[100, 100, 40, 40, 0.9, 0], [102, 100, 40, 40, 0.8, 0], [100, 100, 40, 40, 0, 0.7]], np.float32)
    detect = YoloDetector(bright_cells(tmp_path / "bright.onnx"))
    found = detect._best_rows(rows.T, 0, 0.3, None)
    assert found.classes.tolist() == [0, 1] and found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_a_segmenter_gives_masks_cut_to_their_boxes(tmp_path: Path):
    detect = YoloDetector(bright_cells(tmp_path / "bright.onnx", masks=True))
    boxes, _, masks = detect(picture_with((128, 128, 160, 160, 0)))
    y, x = np.nonzero(masks[0])
    assert masks.shape == (1, 320, 320)
    assert (x.min(), x.max() + 1, y.min()) == (124, 164, 124) and abs(y.max() + 1 - 160) <= 2


def test_masks_of_a_fixed_input_have_no_border(tmp_path: Path):
    detect = YoloDetector(bright_cells(tmp_path / "bright.onnx", masks=True))
    _, _, masks = detect(picture_with((128, 32, 192, 96, 0), size=(640, 320)), 0.9)
    assert masks.shape == (1, 160, 320)


def test_rows_of_other_yolos():
    new = np.zeros((2, 7), np.float32)
    new[0], new[1] = [50, 60, 20, 10, 0.1, 0.8, 0.3], [20, 20, 10, 10, 0.6, 0.2, 0.1]
    turned = read_yolo_rows(new.T, 3, 0)
    same = read_yolo_rows(new, 3, 0)
    np.testing.assert_array_equal(turned.boxes, same.boxes)
    assert turned.classes.tolist() == same.classes.tolist() == [1, 0]
    np.testing.assert_allclose(turned.boxes[0], [40, 55, 60, 65])
    old = read_yolo_rows(np.array([[50, 60, 20, 10, 0.5, 0.1, 0.8]] * 9, np.float32), 2, 0)
    assert old.scores[0] == pytest.approx(0.4) and old.classes[0] == 1
    suppressed = read_yolo_rows(np.array([[40, 55, 60, 65, 0.9, 7]] * 4, np.float32), 80, 0)
    assert suppressed.scores[0] == pytest.approx(0.9) and suppressed.classes[0] == 7
    np.testing.assert_allclose(suppressed.boxes[0], [40, 55, 60, 65])


def test_a_picture_is_padded_to_multiples_of_the_stride_where_the_size_is_open():
    box = letterbox(np.full((320, 500, 3), 255, np.uint8), (None, None))
    assert box.pixels.shape == (1, 3, 416, 640) and (box.height, box.top, box.left) == (410, 3, 0)
    assert box.pixels[0, 0, 0, 0] == pytest.approx(114 / 255) and box.pixels[0, 0, 200, 300] == 1


def test_names_are_found_as_onnx_files(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    bright_cells(tmp_path / "sub" / "hand_yolov8n.onnx")
    library = DetectorLibrary(tmp_path)
    for name in ("hand_yolov8n.pt", "hand_yolov8n.onnx", "hand_yolov8n", str(tmp_path / "sub" / "hand_yolov8n.onnx")):
        assert library.file(name) == tmp_path / "sub" / "hand_yolov8n.onnx"
    assert len(library.find("hand_yolov8n.pt", confidence=0.5)(picture_with((64, 96, 96, 128, 0)))[0]) == 1


@pytest.mark.parametrize(
    "name, said",
    [
        ("person_yolov8n-seg.pt", "never opened.*person_yolov8n-seg.onnx.*yolo export model=person_yolov8n-seg.pt"),
        ("face_yolov8n.pt", "never opened.*mtcnn"),
        ("mediapipe_face_full", "unknown.*mtcnn"),
        ("hand_yolo", "unknown. Did you mean 'hand_yolov8n'"),
    ],
)
def test_a_detector_that_is_not_there_is_refused_with_what_to_do(tmp_path: Path, name: str, said: str):
    bright_cells(tmp_path / "hand_yolov8n.onnx")
    with pytest.raises(ValueError, match=said):
        DetectorLibrary(tmp_path).find(name)


def test_a_pickle_is_not_opened_even_where_it_lies(tmp_path: Path):
    (tmp_path / "face_yolov8n.pt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(ValueError, match="never opened"):
        DetectorLibrary(tmp_path).find(str(tmp_path / "face_yolov8n.pt"))


def test_mtcnn_stands_in_for_the_webuis_face_models_if_asked(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "diffusers.webui"):
        detect = DetectorLibrary(fallback="mtcnn").find("face_yolov8n.pt")
    assert "MTCNN stands in for the detector face_yolov8n.pt" in caplog.text
    boxes, scores, masks = detect(picture_with((64, 96, 96, 128, 0)))
    assert boxes.shape == (0, 4) and scores.shape == (0,) and masks is None
    with pytest.raises(ValueError, match="hand_yolov8n"):
        DetectorLibrary(fallback="mtcnn").find("hand_yolov8n.pt")


def test_what_is_no_detector_is_refused(tmp_path: Path):
    (tmp_path / "broken.onnx").write_bytes(b"not onnx")
    with pytest.raises(WeightFileError, match="no ONNX model"):
        YoloDetector(tmp_path / "broken.onnx")
