"""Face detectors, restorers and parsers: the shipped one works, others load, and wrong files say what they are."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from webui_diffusers.loaders.data_files import package_file
from webui_diffusers.loaders.faces.load import (
    fetch_face_file,
    load_face_detector,
    load_face_parser,
    load_face_restorer,
)
from webui_diffusers.loaders.faces.mtcnn import FaceDetector, suppress_boxes
from webui_diffusers.loaders.faces.parsenet import FaceParser
from webui_diffusers.loaders.faces.restorer import FaceRestorer, face_net_class
from webui_diffusers.loaders.faces.retinaface import RetinaFaceDetector
from webui_diffusers.loaders.weight_files import WeightFileError
from webui_diffusers.pipelines.images.faces.align import face_landmarks, face_roll, fit_face
from webui_diffusers.pipelines.images.faces.rolled import detect_turned, turn_matrix
from webui_diffusers.pipelines.images.opencv import warp_affine


FACES = Path(__file__).parent / "golden" / "faces"
MTCNN = json.loads((FACES / "mtcnn.json").read_text())["pictures"]
TINY_GFPGAN = {"narrow": 0.0625, "num_style_feat": 32, "num_mlp": 2}


def photo(name):
    return np.array(Image.open(FACES / "in" / name).convert("RGB"))


def noise_of(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def detector():
    return load_face_detector()


@pytest.fixture(scope="module")
def tiny_gfpgan():
    """GFPGAN's architecture with few channels and noise that shows."""
    torch.manual_seed(0)
    restorer = FaceRestorer("GFPGAN", TINY_GFPGAN).eval()
    with torch.no_grad():
        for name, parameter in restorer.named_parameters():
            if "style_conv" in name and name.endswith(".weight") and parameter.numel() == 1:
                parameter.fill_(0.5)
    return restorer


# --- the detector that ships


@pytest.mark.parametrize("name", MTCNN)
def test_faces_and_landmarks_are_those_of_facenet_pytorch(detector, name):
    rows, expected = detector(photo(name)), np.array(MTCNN[name]).reshape(-1, 15)
    assert rows.shape == expected.shape
    assert np.abs(rows[:, 5:] - expected[:, 5:]).max(initial=0) < 0.01
    assert np.abs(rows - expected).max(initial=0) < 0.01


def test_parity_with_facenet_pytorch(detector):
    mtcnn = pytest.importorskip("facenet_pytorch", reason="facenet-pytorch is not installed: recorded landmarks hold")
    reference = mtcnn.MTCNN(keep_all=True, select_largest=False)
    picture = photo("two.png")[20:, 30:]
    boxes, scores, points = reference.detect(Image.fromarray(picture), landmarks=True)
    expected = np.column_stack([boxes, scores, points.reshape(-1, 10)]).astype(np.float64)
    expected = expected[np.argsort(-expected[:, 4])]
    assert np.abs(detector(picture) - expected).max() < 0.01


@pytest.mark.parametrize("angle", [0, 35, 60, 180, -90])
@pytest.mark.parametrize("name", ["astro_320.png", "grace_small.png"])
def test_faces_are_found_at_any_roll(detector, name, angle):
    picture = photo(name)
    matrix, size = turn_matrix((picture.shape[1], picture.shape[0]), angle)
    notes = []
    rows = detect_turned(warp_affine(picture, matrix, size), detector, notes)
    upright = face_landmarks(np.array(MTCNN[name][0]))
    expected = upright @ matrix[:, :2].T + matrix[:, 2]
    assert bool(notes) == (abs(angle) > 20)
    # within a tenth of the crop, which the landmarks' own spread takes up half of
    crop = fit_face(face_landmarks(rows[0]))
    corners = np.linalg.inv(np.vstack([fit_face(expected), [0, 0, 1]])) @ [[0, 512, 0, 512], [0, 0, 512, 512], [1] * 4]
    moved = crop @ corners - [[0, 512, 0, 512], [0, 0, 512, 512]]
    assert np.abs(moved).max() < 51


def test_no_face_is_found_in_a_picture_without_one(detector):
    notes = []
    assert detect_turned(photo("nofaces.png"), detector, notes).shape == (0, 15) and not notes


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (11, 11), (20, 20)])
def test_pictures_smaller_than_a_face_hold_none(detector, shape):
    assert detector(np.zeros((*shape, 3), np.uint8)).shape == (0, 15)


def test_a_rolled_face_is_measured_upright(detector):
    picture = photo("grace_rotm50.png")
    (row,) = detect_turned(picture, detector)
    assert face_roll(row) == pytest.approx(47, abs=4)


def test_of_overlapping_boxes_the_best_stays():
    boxes = np.array([[0, 0, 10, 10, 0.8], [1, 1, 11, 11, 0.9], [30, 30, 40, 40, 0.7]], np.float32)
    assert suppress_boxes(boxes, 0.5).tolist() == [1, 2]
    assert suppress_boxes(boxes, 0.9).tolist() == [1, 0, 2]


# --- saved and loaded


def test_the_detector_survives_being_saved(detector, tmp_path):
    detector.save_pretrained(tmp_path)
    picture = photo("two.png")
    assert np.array_equal(load_face_detector(tmp_path)(picture), detector(picture))
    assert np.array_equal(FaceDetector.from_pretrained(tmp_path)(picture), detector(picture))


def test_a_restorer_survives_being_saved(tiny_gfpgan, tmp_path):
    tiny_gfpgan.save_pretrained(tmp_path)
    again, face = load_face_restorer(tmp_path), torch.rand(1, 3, 512, 512) * 2 - 1
    assert again.config.architecture == "GFPGAN" and again.config.parameters == TINY_GFPGAN
    assert torch.allclose(again(face), tiny_gfpgan(face), atol=1e-5)


def test_a_parser_loads_from_its_published_keys_and_survives_being_saved(tmp_path):
    torch.manual_seed(0)
    parser = FaceParser().eval()
    torch.save(parser.state_dict(), tmp_path / "parsing_parsenet.pth")
    assert {"encoder.0.conv2d.weight", "body.9.conv2.norm.norm.running_var", "out_mask_conv.conv2d.bias"} <= set(
        parser.state_dict()
    )
    loaded = load_face_parser(tmp_path)
    loaded.save_pretrained(tmp_path / "saved")
    face = torch.rand(1, 3, 64, 64) * 2 - 1
    for other in (loaded, load_face_parser(tmp_path / "saved"), load_face_parser("ParseNet", folder=tmp_path)):
        assert torch.allclose(other(face), parser(face), atol=1e-5)
    assert parser(face).shape == (1, 19, 64, 64)


def test_retinaface_gives_rows_in_the_pictures_pixels(tmp_path):
    torch.manual_seed(0)
    retina = RetinaFaceDetector(width=8, blocks=(1, 1, 1, 1), channels=32).eval()
    picture = photo("two.png")
    rows = retina(picture, threshold=0.3)
    assert rows.shape[1] == 15 and len(rows) and (np.diff(rows[:, 4]) <= 0).all() and rows[:, 4].min() > 0.3
    centres = (rows[:, :2] + rows[:, 2:4]) / 2
    assert (centres > -40).all() and (centres < np.array([448, 256]) + 40).all()
    retina.save_pretrained(tmp_path)
    assert np.allclose(load_face_detector(tmp_path)(picture, threshold=0.3), rows, atol=1e-3)


def test_parity_with_facexlib():
    facexlib = pytest.importorskip("facexlib.parsing.parsenet", reason="facexlib is not installed")
    torch.manual_seed(0)
    theirs, ours = facexlib.ParseNet(in_size=512, out_size=512, parsing_ch=19).eval(), FaceParser().eval()
    ours.load_state_dict(theirs.state_dict())
    face = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.allclose(ours(face), theirs(face)[0], atol=1e-5)


# --- noise and precision


def test_gfpgans_noise_comes_from_the_generator_and_from_nowhere_else(tiny_gfpgan):
    face, state = torch.zeros(1, 3, 512, 512), torch.get_rng_state()
    one, same, other = (tiny_gfpgan(face, generator=noise_of(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(tiny_gfpgan(face), tiny_gfpgan(face))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_restorer_moved_to_half_precision_stays_as_it_is(tiny_gfpgan):
    assert tiny_gfpgan.to(torch.float16).dtype == torch.float32
    assert tiny_gfpgan.to("cpu", torch.float16).dtype == torch.float32


# --- wrong files


def test_an_sd_checkpoint_is_no_face_restorer(tmp_path):
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4)}, tmp_path / "sd15.safetensors")
    for load in (load_face_restorer, load_face_detector, load_face_parser):
        with pytest.raises(WeightFileError, match="sd15.safetensors.*Stable Diffusion checkpoint"):
            load(tmp_path / "sd15.safetensors")


def test_a_detector_is_no_restorer():
    shipped = package_file("weights/mtcnn.safetensors")
    with pytest.raises(WeightFileError, match="MTCNN"):
        load_face_restorer(shipped)


def test_a_truncated_file_is_told(tmp_path, tiny_gfpgan):
    path = tmp_path / "GFPGANv1.4.pth"
    torch.save({"params_ema": tiny_gfpgan.net.state_dict()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightFileError, match="truncated or damaged"):
        load_face_restorer(path)


def test_tensors_of_another_size_are_told(tmp_path, tiny_gfpgan):
    path = tmp_path / "GFPGANv1.pth"
    torch.save({"params_ema": tiny_gfpgan.net.state_dict()}, path)
    with pytest.raises(WeightFileError, match="looks like GFPGAN, but its tensors do not fit"):
        load_face_restorer(path)


class Malicious:
    def __reduce__(self):
        return (Path("/nonexistent/touched").touch, ())


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    path = tmp_path / "GFPGANv1.4.pth"
    path.write_bytes(pickle.dumps({"params_ema": Malicious()}))
    with pytest.raises(WeightFileError, match="would run code"):
        load_face_restorer(path)


def test_a_saved_part_of_another_kind_is_told(detector, tmp_path):
    detector.save_pretrained(tmp_path)
    with pytest.raises(WeightFileError, match="holds a FaceDetector, and FaceRestorer was expected"):
        load_face_restorer(tmp_path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(WeightFileError, match="GFPGAN, CodeFormer"):
        load_face_restorer("GPFGAN")


def test_offline_the_message_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(WeightFileError, match="RetinaFace needs the file detection_Resnet50_Final.pth"):
        fetch_face_file("RetinaFace", tmp_path)


def test_a_folder_with_several_files_asks_which(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(WeightFileError, match="2 weight files"):
        load_face_restorer(tmp_path)


def test_codeformer_without_its_extra_says_how_to_get_it(tmp_path):
    try:
        face_net_class("CodeFormer")
        pytest.skip("the extra [codeformer] is installed")
    except ImportError as error:
        assert "pip install 'webui-diffusers[codeformer]'" in str(error)


# --- the real architectures, randomly initialised, under the published keys


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["GFPGAN", "RestoreFormer", "CodeFormer"])
def test_a_published_file_loads_and_restores_a_photo(architecture, tmp_path):
    from webui_diffusers.pipelines import FaceRestorePipeline

    if architecture == "CodeFormer":
        pytest.importorskip("spandrel_extra_arches", reason="the extra [codeformer] is not installed")
    torch.manual_seed(0)
    torch.save({"params_ema": face_net_class(architecture)().state_dict()}, tmp_path / "published.pth")
    restorer = load_face_restorer(tmp_path / "published.pth")
    assert restorer.config.architecture == architecture
    pipe = FaceRestorePipeline(restorer)
    pipe.set_progress_bar_config(disable=True)
    picture = photo("astro_320.png")
    result = pipe(Image.fromarray(picture), flow="webui", generator=noise_of(0))
    assert result.errors == [[None]] and result.restored_crops[0][0].size == (512, 512)
    assert result.images[0].size == (320, 320) and not np.array_equal(np.array(result.images[0]), picture)
    assert set(load_file(_saved(restorer, tmp_path))) == {f"net.{key}" for key in restorer.net.state_dict()}


def _saved(restorer, folder):
    restorer.save_pretrained(folder / "saved")
    return folder / "saved" / "diffusion_pytorch_model.safetensors"
