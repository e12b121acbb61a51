"""MediaPipe's face mesh, an optional part: it is needed for footage alone.

Release 0.10.21 is the last whose wheel carries the models. Its metadata ask for NumPy 1 and protobuf 4, which nothing
else here can live with; yet installed apart from them (`--no-deps`) it gives the very same landmarks beside NumPy 2.4
and protobuf 7.36, if its graph is run by the framework's own interface: only `mediapipe.solutions`, a layer above,
uses what protobuf 7 has dropped. (Tried; the other ways were an environment of its own for some Ray tasks, and older
releases of everything for everybody.)
"""

import importlib.util
from pathlib import Path
from types import TracebackType

import numpy as np

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.faces import Points
from latentsync_ray.latentsync.data.media import FPS, Bytes

_GRAPH = "mediapipe/modules/face_landmark/face_landmark_front_cpu.binarypb"
_MICROSECONDS_PER_FRAME = 1_000_000 // FPS


def check_installed(models: Path | None = None) -> None:
    """Tells whether faces can be found, without importing anything.

    Args:
        models: the folder that holds `mediapipe/modules`; None for the wheel's.

    Raises:
        UserError: if not.
    """
    if models is not None and not (models / _GRAPH).is_file():
        raise UserError(
            f"--face-models: {models} must hold {_GRAPH} and what belongs to it, as MediaPipe's wheel 0.10.21 does;"
            " name the folder above mediapipe/modules"
        )
    spec = importlib.util.find_spec("mediapipe")
    folders = spec.submodule_search_locations if spec else None
    complete = folders and (models or (Path(folders[0]).parent / _GRAPH).is_file())
    if not complete or importlib.util.find_spec("cv2") is None:
        raise UserError(
            "--raw: needs MediaPipe 0.10.21 to find faces, which is not installed (or not with its models); run pip"
            " install 'latentsync_ray[face]' and then pip install --no-deps mediapipe==0.10.21"
        )


class FaceMesh:
    """Follows the most prominent face through the frames of one video; a context manager.

    Args:
        models: the folder that holds `mediapipe/modules`; None for the wheel's.
    """

    def __init__(self, models: Path | None = None) -> None:
        import mediapipe
        from mediapipe.python import CalculatorGraph, packet_creator, packet_getter
        from mediapipe.python._framework_bindings import resource_util

        self._packets, self._getter, self._srgb = packet_creator, packet_getter, mediapipe.ImageFormat.SRGB
        resources = models or Path(mediapipe.__file__).parent.parent
        resource_util.set_resource_dir(str(resources))
        self._graph = CalculatorGraph(binary_graph_path=str(resources / _GRAPH))
        self._found: list[object] = []
        self._graph.observe_output_stream("multi_face_landmarks", lambda name, packet: self._found.append(packet))
        self._num_frames = 0

    def __enter__(self) -> "FaceMesh":
        self._graph.start_run(
            {
                "num_faces": self._packets.create_int(1),
                "with_attention": self._packets.create_bool(True),  # 478 vertices, lips and eyes refined
                "use_prev_landmarks": self._packets.create_bool(True),
            }
        )
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._graph.close()

    def __call__(self, frame: Bytes) -> Points | None:
        """Finds the face in the next frame.

        Args:
            frame: uint8 (H, W, 3), RGB, contiguous.

        Returns:
            (478, 2), the mesh's vertices (x, y) in pixels; None if there is no face.
        """
        self._found.clear()
        image = self._packets.create_image_frame(image_format=self._srgb, data=frame)
        self._graph.add_packet_to_input_stream("image", image.at(self._num_frames * _MICROSECONDS_PER_FRAME))
        self._graph.wait_until_idle()
        self._num_frames += 1
        if not self._found:
            return None
        (mesh,) = self._getter.get_proto_list(self._found[0])
        height, width = frame.shape[:2]
        return np.array([(vertex.x * width, vertex.y * height) for vertex in mesh.landmark])


def has_small_face(frame: Bytes, models: Path | None = None) -> bool:
    """Tells whether a frame shows a face that is too small for `FaceMesh`, by looking at parts of it.

    MediaPipe looks for faces in a picture of 128 x 128 pixels, so it finds none below a tenth of a frame's width.

    Args:
        frame: uint8 (H, W, 3), RGB.
        models: as `FaceMesh` takes it.
    """
    for parts in (2, 4):
        side = max(frame.shape[:2]) // parts
        rows, columns = (range(0, max(1, length - side // 2), max(1, side // 2)) for length in frame.shape[:2])
        with FaceMesh(models) as face_mesh:
            tiles = (frame[row : row + side, column : column + side] for row in rows for column in columns)
            if any(face_mesh(np.ascontiguousarray(tile)) is not None for tile in tiles):
                return True
    return False
