"""FaceRestorePipeline: every kind of picture in, the same kind out; saved, offloaded, interrupted."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from webui_diffusers.loaders.faces.mtcnn import FaceDetector
from webui_diffusers.loaders.faces.restorer import FaceRestorer
from webui_diffusers.pipelines import FaceRestorePipeline, face_restore


FACES = Path(__file__).parent / "golden" / "faces"
MTCNN = json.loads((FACES / "mtcnn.json").read_text())["pictures"]


class PaintedFace(ModelMixin, ConfigMixin):
    """Gives red faces; remembers what it was called with."""

    @register_to_config
    def __init__(self, red: float = 1.0):
        super().__init__()
        self.colour = torch.nn.Parameter(torch.tensor([red, -1.0, -1.0]))
        self.calls = []

    def forward(self, face, weight=None, generator=None):
        self.calls.append((tuple(face.shape), weight, generator))
        return self.colour.view(1, 3, 1, 1).expand_as(face), "more"


class SameFace(PaintedFace):
    def forward(self, face):
        return face


class Twice(ModelMixin, ConfigMixin):
    scale = 2

    @register_to_config
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixels):
        return pixels.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def photo(name="astro_320.png"):
    return Image.open(FACES / "in" / name).convert("RGB")


@pytest.fixture
def pipe():
    pipe = FaceRestorePipeline(PaintedFace())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def is_red(picture, x, y):
    return np.abs(np.asarray(picture)[y, x, :3].astype(int) - (255, 0, 0)).max() <= 2


# --- what comes out


def test_the_face_is_found_restored_and_described(pipe):
    result = pipe(photo())
    row = np.array(MTCNN["astro_320.png"][0])
    assert (
        np.abs(result.boxes[0] - row[:4]).max() < 0.1 and np.abs(result.landmarks[0][0].ravel() - row[5:]).max() < 0.1
    )
    assert result.scores[0].tolist() == pytest.approx([row[4]], abs=1e-3)
    assert is_red(result.images[0], 156, 129)
    assert result.crops[0][0].size == result.restored_crops[0][0].size == (512, 512)
    assert is_red(result.restored_crops[0][0], 256, 256) and not is_red(result.crops[0][0], 256, 256)
    assert result.masks == [["square"]] and result.errors == [[None]]
    assert isinstance(pipe.face_detector, FaceDetector)


def test_given_detections_replace_the_detector(pipe):
    rows = [[0] * 4 + [1] + (np.array(MTCNN["astro_320.png"][0][5:]) + 0.0).tolist()]
    pipe.face_detector = None
    for detections in (rows, [rows], np.array([rows])):
        assert is_red(pipe(photo(), detections=detections).images[0], 156, 129)
    pair = pipe([photo(), photo()], detections=[rows, []])
    assert [len(boxes) for boxes in pair.boxes] == [1, 0]


def test_fidelity_and_generator_reach_the_net(pipe):
    generator = torch.Generator().manual_seed(0)
    pipe(photo(), fidelity=0.25, generator=generator)
    assert pipe.face_restorer.calls == [((1, 3, 512, 512), 0.25, generator)]


@pytest.mark.parametrize("flow", ["webui", "facexlib", "codeformer", "own"])
def test_coordinates_are_those_of_the_picture_given(pipe, flow):
    result = pipe(photo("grace_small.png"), flow=flow)
    row = np.array(MTCNN["grace_small.png"][0])
    assert np.abs(result.landmarks[0][0].ravel() - row[5:]).max() < 3
    assert result.images[0].size == ((512, 576) if flow == "codeformer" else (160, 180))


def test_several_faces_one_by_choice(pipe):
    assert len(pipe(photo("two.png")).boxes[0]) == 2
    assert len(pipe(photo("two.png"), only_center_face=True).boxes[0]) == 1
    largest = pipe(photo("two.png"), only_largest=True).boxes[0]
    assert np.prod(largest[0, 2:] - largest[0, :2]) > 12000


def test_an_aligned_face_is_restored_whole(pipe):
    image = pipe(photo("grace_small.png"), has_aligned=True).images[0]
    assert image.size == (512, 512) and is_red(image, 0, 0) and is_red(image, 511, 511)


def test_background_and_face_are_enlarged_by_the_upscaler(pipe):
    pipe.upscaler = Twice()
    for face_upsample in (False, True):
        image = pipe(photo(), upscale=2, face_upsample=face_upsample).images[0]
        assert image.size == (640, 640) and is_red(image, 312, 258)
        assert np.array_equal(np.array(image)[:40:2, :40:2], np.array(photo())[:20, :20])


# --- every kind of picture


def test_lists_arrays_and_tensors_come_back_in_the_form_asked_for(pipe):
    array, found = np.array(photo()), {"detections": [[0] * 4 + [1] + MTCNN["astro_320.png"][0][5:]]}
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
    for given in (array, array[None], array / 255, tensor, tensor[0], [photo()]):
        assert is_red(pipe(given, **found).images[0], 156, 129)
    assert is_red(pipe(tensor).images[0], 156, 129)  # the detector's turn
    assert pipe(tensor, output_type="pt", **found).images.shape == (1, 3, 320, 320)
    none = {"detections": [[], []]}
    assert pipe([photo(), photo()], output_type="np", **none).images.shape == (2, 320, 320, 3)
    different = pipe([photo(), photo("grace_small.png")], output_type="np", **none).images
    assert [image.shape for image in different] == [(320, 320, 3), (180, 160, 3)]
    (images,) = pipe(photo(), return_dict=False, **found)
    assert images[0].size == (320, 320)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "YCbCr", "HSV"])
def test_other_colour_modes_are_restored_as_rgb(pipe, mode):
    image = pipe(photo().convert(mode)).images[0]
    assert image.mode == "RGB" and is_red(image, 156, 129) or mode == "L"


def test_16_bit_pictures_are_rounded_to_8(pipe):
    gray = np.array(photo().convert("L")).astype(np.uint16) * 257
    image = pipe(Image.fromarray(gray)).images[0]
    assert np.abs(np.array(image)[:60, :60, 0].astype(int) - gray[:60, :60] // 257).max() == 0
    assert len(pipe(np.repeat(gray[..., None], 3, axis=2)).boxes[0]) == 1


def test_transparency_is_kept(pipe):
    picture = photo().convert("RGBA")
    alpha = Image.fromarray(np.tile(np.arange(320, dtype=np.uint32) * 255 // 319, (320, 1)).astype(np.uint8))
    picture.putalpha(alpha)
    for visibility in (1.0, 0.5):
        image = pipe(picture, visibility=visibility).images[0]
        assert image.mode == "RGBA" and np.array_equal(np.array(image)[..., 3], np.array(alpha))


def test_exif_orientation_is_applied(pipe):
    picture = photo().transpose(Image.Transpose.ROTATE_90)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    picture.info["exif"] = exif.tobytes()
    assert is_red(pipe(picture).images[0], 156, 129)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "P", "1", "I;16"])
def test_without_a_face_the_picture_comes_back_value_for_value(pipe, mode):
    plain = photo("nofaces.png").crop((0, 0, 96, 96))
    picture = (
        Image.fromarray(np.array(plain.convert("L")).astype(np.uint16) * 201)
        if mode == "I;16"
        else plain.convert(mode)
    )
    image = pipe(picture).images[0]
    assert image.mode == picture.mode and image.tobytes() == picture.tobytes()


def test_without_a_face_floats_keep_their_precision(pipe):
    values = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    assert np.array_equal(pipe(values, output_type="np").images[0], values)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
@pytest.mark.parametrize("flow", ["webui", "facexlib", "own"])
def test_one_pixel_is_a_picture(pipe, size, flow):
    picture = Image.new("RGB", size, (10, 20, 30))
    assert pipe(picture, flow=flow).images[0].tobytes() == picture.tobytes()


# --- as a pipeline


def test_a_saved_pipeline_restores_the_same(tmp_path):
    torch.manual_seed(0)
    net = FaceRestorer("GFPGAN", {"narrow": 0.0625, "num_style_feat": 32, "num_mlp": 2}).eval()
    pipe = FaceRestorePipeline(net)
    pipe.save_pretrained(tmp_path)
    again = FaceRestorePipeline.from_pretrained(tmp_path, trust_remote_code=True)
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
    expected, image = pipe(photo()).images[0], again(photo()).images[0]
    assert np.abs(np.array(image).astype(int) - np.array(expected)).max() <= 1
    assert again.face_parser is None and again.upscaler is None
    again.to(torch.float16)
    assert again.face_restorer.dtype == again.face_detector.dtype == torch.float32


def test_a_saved_folder_brings_its_code(tmp_path):
    pipe = FaceRestorePipeline(FaceRestorer("GFPGAN", {"narrow": 0.0625, "num_style_feat": 32, "num_mlp": 2}).eval())
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(again).__name__ == "FaceRestorePipeline" and type(again) is not FaceRestorePipeline
    again.set_progress_bar_config(disable=True)
    result = again(photo("two.png"))
    assert len(result.boxes[0]) == 2 and result.errors == [[None, None]]


def test_there_is_one_pipeline_class_in_the_file():
    classes = [
        c for _, c in inspect.getmembers(face_restore, inspect.isclass) if c.__module__ == face_restore.__name__
    ]
    assert [c for c in classes if issubclass(c, DiffusionPipeline)] == [FaceRestorePipeline]


def test_progress_counts_faces(pipe, monkeypatch):
    totals = []
    bar = pipe.progress_bar
    monkeypatch.setattr(pipe, "progress_bar", lambda total: totals.append(total) or bar(total=total))
    pipe([photo("two.png"), photo("nofaces.png")])
    assert totals == [2]


def test_the_same_picture_twice_is_the_same(pipe):
    first, second = pipe([photo(), photo()]).images
    assert first.tobytes() == second.tobytes()


# --- errors


@pytest.mark.parametrize(
    "picture, message",
    [
        (Image.new("RGB", (0, 0)), "has no pixels"),
        (np.zeros((0, 5, 3), np.uint8), "needs pixels"),
        (np.zeros((5, 5, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((5, 5, 3)) + 200.0, "float pictures lie in"),
        (np.full((5, 5, 3), np.nan), "float pictures lie in"),
        (torch.zeros(5, 5), "a tensor of pictures"),
        (Image.new("F", (5, 5)), "mode 'F'"),
        ("photo.png", "load_image"),
    ],
)
def test_what_is_no_picture_is_refused(pipe, picture, message):
    with pytest.raises(ValueError, match=message):
        pipe(picture)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"flow": "gfpgan"}, "`flow` must be one of"),
        ({"fidelity": 1.5}, "`fidelity` must lie"),
        ({"visibility": -1}, "`visibility` must lie"),
        ({"upscale": -2}, "`upscale` must be"),
        ({"face_upsample": True}, "`face_upsample`"),
        ({"output_type": "jpg"}, "`output_type` must be"),
        ({"detections": [[1, 2, 3]]}, "15 finite numbers"),
        ({"detections": [[], []]}, "2 entries for 1 pictures"),
        ({"generator": [None, None]}, "2 entries for 1 pictures"),
    ],
)
def test_wrong_arguments_are_named(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(photo(), **arguments)
    assert not pipe.face_restorer.calls
