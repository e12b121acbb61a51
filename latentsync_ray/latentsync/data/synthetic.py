"""Talking-face clips drawn with numpy: faces whose mouths really follow their voices.

A clip begins with a line of syllables: an envelope (how loud, how open) and a vowel (openness and lip
spread), both smooth in time. The voice sounds them with harmonics under moving formants, the mouth shows
them, so that sound and picture agree at every moment and a window of a third of a second can nearly always
be told from any other. The voice is a cascade formant synthesiser after Klatt (1980), "Software for a
cascade/parallel formant synthesizer".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentsync_ray.latentsync.data.media import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Clip

Floats = npt.NDArray[np.floating[Any]]
Colour = tuple[float, float, float]

CONTROL_HZ = 100
SAMPLES_PER_CONTROL = SAMPLE_RATE // CONTROL_HZ
HIGHEST_HARMONIC_HZ = 4000.0
FRAMES_AT_ONCE = 16  # drawn together; few enough to stay in the processor's cache

SKIN: tuple[Colour, ...] = (
    (0.98, 0.85, 0.75),
    (0.94, 0.76, 0.62),
    (0.83, 0.62, 0.47),
    (0.66, 0.45, 0.32),
    (0.47, 0.31, 0.22),
)
HAIR: tuple[Colour, ...] = (
    (0.12, 0.09, 0.08),
    (0.30, 0.19, 0.12),
    (0.55, 0.33, 0.16),
    (0.86, 0.70, 0.40),
    (0.62, 0.24, 0.14),
    (0.75, 0.75, 0.76),
)
IRIS: tuple[Colour, ...] = (
    (0.25, 0.15, 0.09),
    (0.20, 0.42, 0.62),
    (0.25, 0.48, 0.28),
    (0.40, 0.40, 0.44),
)
WHITE: Colour = (0.97, 0.97, 0.95)


def synthetic_clips(
    num_speakers: int, clips_per_speaker: int, num_frames: int, resolution: int, seed: int
) -> Iterator[Clip]:
    """Draws talking-face clips; a pure function of its arguments.

    Speaker `s` of a seed looks and sounds the same whatever the other arguments are.

    Args:
        num_speakers: how many different people.
        clips_per_speaker: how many clips of each.
        num_frames: frames of a clip, at 25 a second.
        resolution: height and width in pixels.
        seed: chooses the people and what they say.

    Yields:
        Clips named "speaker0/00", "speaker0/01", ..., in that order, each with frames uint8
        (num_frames, resolution, resolution, 3) and a wave float32 (640 * num_frames,) in [-1, 1] at 16 kHz.
    """
    for s in range(num_speakers):
        speaker = _Speaker.draw(np.random.default_rng([seed, s]))
        for c in range(clips_per_speaker):
            rng = np.random.default_rng([seed, s, c, 1])
            speech = _Speech.draw(rng, num_frames / FPS)
            poses = _poses(speaker, speech, (np.arange(num_frames) + 0.5) / FPS, rng)
            chunks = [poses[:, i : i + FRAMES_AT_ONCE] for i in range(0, num_frames, FRAMES_AT_ONCE)]
            frames = np.concatenate([_draw_frames(speaker, chunk, resolution) for chunk in chunks])
            yield Clip(f"speaker{s}/{c:02d}", frames, _voice(speaker, speech, num_frames, rng))


@dataclass(frozen=True)
class _Speaker:
    """What one person looks and sounds like. Lengths are fractions of the picture."""

    pitch_hz: float
    formant_scale: float
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    shirt: Colour
    background: tuple[Colour, Colour]
    face_width: float
    jaw: float
    hair_volume: float
    hair_length: float
    fringe: float
    parting: float
    eye_distance: float
    eye_size: float
    brow_thickness: float
    brow_tilt: float
    nose_length: float
    mouth_width: float
    mouth_height: float
    lip_thickness: float
    glasses: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Speaker":
        """Draws a person."""
        tone = rng.uniform(0, len(SKIN) - 1)
        skin = _mix(SKIN[int(tone)], SKIN[int(tone) + 1], tone % 1.0)
        top = _mix((0.5, 0.5, 0.5), _colour(rng), 0.8)
        return cls(
            pitch_hz=float(90 * 2.6 ** rng.uniform()),
            formant_scale=float(rng.uniform(0.9, 1.15)),
            skin=skin,
            hair=_mix(HAIR[rng.integers(len(HAIR))], HAIR[rng.integers(len(HAIR))], rng.uniform(0, 0.4)),
            iris=IRIS[rng.integers(len(IRIS))],
            lips=_mix(skin, _mix((0.80, 0.22, 0.26), (0.62, 0.16, 0.24), rng.uniform()), rng.uniform(0.65, 0.95)),
            shirt=_colour(rng),
            background=(top, _mix(top, (0.1, 0.1, 0.15), rng.uniform(0.1, 0.5))),
            face_width=float(rng.uniform(0.27, 0.325)),
            jaw=float(rng.uniform(0.0, 1.0)),
            hair_volume=float(rng.uniform(0.035, 0.085)),
            hair_length=float(rng.uniform(0.35, 0.95)),
            fringe=float(rng.uniform(0.16, 0.24)),
            parting=float(rng.uniform(-0.2, 0.2)),
            eye_distance=float(rng.uniform(0.115, 0.145)),
            eye_size=float(rng.uniform(0.042, 0.056)),
            brow_thickness=float(rng.uniform(0.010, 0.020)),
            brow_tilt=float(rng.uniform(-0.3, 0.08)),
            nose_length=float(rng.uniform(0.06, 0.09)),
            mouth_width=float(rng.uniform(0.115, 0.145)),
            mouth_height=float(rng.uniform(0.075, 0.095)),
            lip_thickness=float(rng.uniform(0.026, 0.040)),
            glasses=bool(rng.uniform() < 0.15),
        )


@dataclass(frozen=True)
class _Speech:
    """What is said: knots in time, eased between. All values lie in [0, 1]."""

    envelope_times: Floats
    envelopes: Floats
    vowel_times: Floats
    openness: Floats
    spread: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, seconds: float) -> "_Speech":
        """Draws syllables of 0.14 to 0.33 s, uneven, with a pause after every seventh or so."""
        now = -rng.uniform(0, 0.3)
        envelopes = [(now, 0.1)]
        vowels = [(now, 0.5, 0.5)]
        while now < seconds:
            length = rng.uniform(0.14, 0.33)
            peak = now + length * rng.uniform(0.3, 0.55)
            envelopes += [(peak, rng.uniform(0.55, 1.0)), (now + length, rng.uniform(0.0, 0.25))]
            # This beta distribution draws the vowels towards the corners, where they differ most.
            vowels.append((peak, rng.beta(0.7, 0.7), rng.beta(0.7, 0.7)))
            now += length
            if rng.uniform() < 0.15:
                pause = rng.uniform(0.10, 0.26)
                envelopes[-1] = (now, 0.0)
                envelopes.append((now + pause, 0.0))
                vowels.append((now + pause / 2, 0.5, 0.5))
                now += pause
        envelope_times, envelope_values = np.array(envelopes).T
        vowel_times, openness, spread = np.array(vowels).T
        return cls(envelope_times, envelope_values, vowel_times, openness, spread)

    def envelope_at(self, times: Floats) -> Floats:
        """Loudness, 0 in pauses."""
        return _ease(times, self.envelope_times, self.envelopes)

    def openness_at(self, times: Floats) -> Floats:
        """How open the vowel is: 0 as in "see", 1 as in "father"; the first formant follows."""
        return _ease(times, self.vowel_times, self.openness)

    def spread_at(self, times: Floats) -> Floats:
        """How wide the lips are: 0 as in "who", 1 as in "see"; the second formant follows."""
        return _ease(times, self.vowel_times, self.spread)


def _voice(speaker: _Speaker, speech: _Speech, num_frames: int, rng: np.random.Generator) -> Floats:
    """Sounds the speech: harmonics of the pitch under three resonances, and a little breath."""
    num_samples = num_frames * SAMPLES_PER_FRAME
    times = np.arange(num_samples // SAMPLES_PER_CONTROL + 1) / CONTROL_HZ
    envelope = speech.envelope_at(times)

    # Pitch: a slow wander, and a little higher where it is louder.
    wander = np.sin(2 * np.pi * (rng.uniform(0.3, 0.8) * times + rng.uniform()))
    pitch = (speaker.pitch_hz * (1 + 0.08 * wander + 0.06 * envelope)).astype(np.float32)
    phase = 2 * np.pi * np.cumsum(_to_samples(pitch), dtype=np.float64) / SAMPLE_RATE

    formants = (
        (speaker.formant_scale * 280 * 2.9 ** speech.openness_at(times), 70.0),
        (speaker.formant_scale * 900 * 2.7 ** speech.spread_at(times), 100.0),
        (np.full(len(times), speaker.formant_scale * 2900, np.float32), 180.0),
    )
    wave = np.zeros(num_samples, np.float32)
    for k in range(1, int(HIGHEST_HARMONIC_HZ / speaker.pitch_hz) + 1):
        frequency = k * pitch
        gain = envelope**1.5 / k
        for centre, bandwidth in formants:
            gain = gain * centre**2 / np.hypot(centre**2 - frequency**2, bandwidth * frequency)
        wave += _to_samples(gain) * np.sin(np.remainder(k * phase, 2 * np.pi).astype(np.float32))

    breath = rng.standard_normal(num_samples, dtype=np.float32)
    wave = 0.12 * wave + breath * (0.0005 + 0.004 * _to_samples(envelope))
    return np.tanh(wave)


def _poses(speaker: _Speaker, speech: _Speech, times: Floats, rng: np.random.Generator) -> Floats:
    """Mouth opening and width, head's x, y and roll, and how far the eyes are open: (6, F)."""
    openness, spread = speech.openness_at(times), speech.spread_at(times)
    return np.stack(
        [
            speaker.mouth_height * speech.envelope_at(times) * (0.45 + 0.55 * openness),
            speaker.mouth_width * (0.55 + 0.75 * spread),
            0.014 * _sway(rng, times),
            0.010 * _sway(rng, times),
            0.05 * _sway(rng, times),
            1 - 0.9 * _blinks(rng, times),
        ]
    )


def _draw_frames(speaker: _Speaker, poses: Floats, resolution: int) -> npt.NDArray[np.uint8]:
    """Draws a frame per pose, back to front. The mouth stays inside LatentSync's fixed mask."""
    opening, width, head_x, head_y, roll, eyelids = poses.astype(np.float32)[:, :, None, None]

    # Coordinates of every pixel relative to the nose, turned with the head: (F, H, W).
    grid = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    still_x, still_y = grid[None, None, :] - 0.5, grid[None, :, None]
    dx, dy = still_x - head_x, still_y - 0.5 - head_y
    x, y = np.cos(roll) * dx + np.sin(roll) * dy, np.cos(roll) * dy - np.sin(roll) * dx + 0.5

    above, below = speaker.background
    image = np.stack([p + (q - p) * np.broadcast_to(still_y, x.shape) for p, q in zip(above, below, strict=True)])
    canvas = _Canvas(x, y, resolution, image)
    hair_width, length = speaker.face_width + speaker.hair_volume, speaker.hair_length
    scalp = canvas.ellipse(0, 0.40, hair_width, 0.34)
    canvas.paint(speaker.hair, scalp, canvas.box(0, 0.2 + length / 2, hair_width, length / 2 - 0.18, 0.1))
    canvas.paint(_mix(speaker.skin, (0.2, 0.05, 0.05), 0.25), canvas.box(0, 0.9, 0.11, 0.2, 0.05))
    canvas.paint(speaker.shirt, canvas.ellipse(0, 1.12, 0.42, 0.20))
    ears = [canvas.ellipse(side * speaker.face_width, 0.5, 0.04, 0.07) for side in (-1, 1)]
    canvas.paint(_mix(speaker.skin, (0.6, 0.2, 0.15), 0.15), *ears)
    chin = canvas.ellipse(0, 0.62, speaker.face_width * (0.84 + 0.12 * speaker.jaw), 0.30)
    canvas.paint(speaker.skin, canvas.ellipse(0, 0.44, speaker.face_width, 0.31), chin)
    fringe = canvas.ellipse(speaker.parting, 0.05, hair_width * 1.1, speaker.fringe)
    canvas.paint(speaker.hair, np.minimum(scalp, fringe))
    _draw_eyes_and_nose(canvas.rows(0.28, 0.66), speaker, eyelids)
    _draw_mouth(canvas.rows(0.60, 0.95), speaker, opening, width)
    return canvas.frames()


def _draw_eyes_and_nose(canvas: "_Canvas", speaker: _Speaker, eyelids: Floats) -> None:
    cheek, brow = _mix(speaker.skin, (0.95, 0.35, 0.35), 0.28), _mix(speaker.hair, (0.1, 0.05, 0.05), 0.3)
    size = speaker.eye_size
    for side in (-1, 1):
        canvas.paint(cheek, canvas.ellipse(side * 0.19, 0.575, 0.055, 0.035))
        centre = side * speaker.eye_distance
        eye = canvas.ellipse(centre, 0.42, size, 0.75 * size * eyelids)
        canvas.paint(WHITE, eye)
        canvas.paint(speaker.iris, np.minimum(eye, canvas.ellipse(centre, 0.42, 0.55 * size, 0.6 * size)))
        brow_y = 0.345 - side * speaker.brow_tilt * (canvas.x - centre)
        canvas.paint(brow, canvas.ellipse(centre, brow_y, 0.065, speaker.brow_thickness))
        if speaker.glasses:
            rim, lens = canvas.ellipse(centre, 0.42, 0.085, 0.075), canvas.ellipse(centre, 0.42, 0.068, 0.058)
            canvas.paint((0.15, 0.15, 0.18), np.minimum(rim, 1 - lens))
    nose = _mix(speaker.skin, (0.45, 0.12, 0.08), 0.3)
    canvas.paint(nose, canvas.ellipse(0, 0.48 + speaker.nose_length, 0.035, 0.022))


def _draw_mouth(canvas: "_Canvas", speaker: _Speaker, opening: Floats, width: Floats) -> None:
    """Lips, the dark inside, tongue and upper teeth; the lower lip moves more than the upper."""
    y, lip = 0.70 + 0.35 * opening, speaker.lip_thickness
    canvas.paint(speaker.lips, canvas.ellipse(0, y, width + 0.6 * lip, opening + lip))
    inside = canvas.ellipse(0, y, width, opening + 0.005)
    canvas.paint((0.22, 0.03, 0.05), inside)
    tongue = canvas.ellipse(0, y + 0.9 * opening, 0.7 * width, 0.5 * opening + 0.002)
    canvas.paint((0.80, 0.32, 0.34), np.minimum(inside, tongue))
    teeth = canvas.box(0, y - opening, 0.75 * width, 0.42 * opening, 0.01)
    canvas.paint(WHITE, np.minimum(inside, teeth))


class _Canvas:
    """Pictures in [0, 1] and anti-aliased shapes on them: coverages (F, H, W) in [0, 1]."""

    def __init__(self, x: Floats, y: Floats, resolution: int, image: Floats) -> None:
        self.x, self.y, self.resolution, self.image = x, y, resolution, image

    def rows(self, top: float, bottom: float) -> "_Canvas":
        """The part between two heights; painting there paints here, and costs less."""
        part = slice(int(top * self.resolution), int(bottom * self.resolution) + 1)
        return _Canvas(self.x[:, part], self.y[:, part], self.resolution, self.image[:, :, part])

    def ellipse(self, x: float, y: Floats | float, half_width: Floats | float, half_height: Floats | float) -> Floats:
        """An ellipse; its distance to the edge is the implicit function over its gradient."""
        u, v = (self.x - x) / half_width, (self.y - y) / half_height
        distance = (1 - u * u - v * v) / (2 * _length(u / half_width, v / half_height) + 1e-6)
        return self._coverage(np.minimum(distance, np.minimum(half_width, half_height)))

    def box(
        self,
        x: float,
        y: Floats | float,
        half_width: Floats | float,
        half_height: Floats | float,
        radius: float,
    ) -> Floats:
        """A rectangle with rounded corners."""
        u = np.abs(self.x - x) - half_width + radius
        v = np.abs(self.y - y) - half_height + radius
        outside = _length(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0)
        return self._coverage(radius - outside)

    def paint(self, colour: Colour, *shapes: Floats) -> None:
        """Paints the union of the shapes."""
        coverage = shapes[0]
        for shape in shapes[1:]:
            coverage = np.maximum(coverage, shape)
        for channel, value in zip(self.image, colour, strict=True):
            channel += coverage * (value - channel)

    def frames(self) -> npt.NDArray[np.uint8]:
        """The pictures as uint8 (F, H, W, 3)."""
        return np.ascontiguousarray(np.moveaxis(self.image * 255 + 0.5, 0, -1).astype(np.uint8))

    def _coverage(self, distance: Floats) -> Floats:
        coverage: Floats = np.clip(distance * self.resolution + 0.5, 0, 1)
        return coverage


def _ease(times: Floats, knot_times: Floats, values: Floats) -> Floats:
    """Goes from knot to knot with a smooth step (zero slope at each knot)."""
    i = np.clip(np.searchsorted(knot_times, times, side="right") - 1, 0, len(values) - 2)
    u = np.clip((times - knot_times[i]) / (knot_times[i + 1] - knot_times[i]), 0, 1)
    eased: Floats = values[i] + (values[i + 1] - values[i]) * u * u * (3 - 2 * u)
    return eased.astype(np.float32)


def _to_samples(control: Floats) -> Floats:
    """Interpolates a control track (T + 1,) linearly to (160 T,) samples."""
    u = np.arange(SAMPLES_PER_CONTROL, dtype=np.float32) / SAMPLES_PER_CONTROL
    return (control[:-1, None] + np.diff(control)[:, None] * u).reshape(-1)


def _sway(rng: np.random.Generator, times: Floats) -> Floats:
    """A slow, smooth wander in [-1, 1]."""
    slow, slower = rng.uniform(0.25, 0.6), rng.uniform(0.08, 0.25)
    phases = [2 * np.pi * (hertz * times + rng.uniform()) for hertz in (slow, slower)]
    wander: Floats = np.sin(phases).mean(axis=0)
    return wander


def _blinks(rng: np.random.Generator, times: Floats) -> Floats:
    """1 with the eyes shut, 0 with them open; a blink of 0.2 s every 1.5 to 4 s."""
    closed = np.zeros(len(times))
    now = rng.uniform(0, 3)
    while now < times[-1] + 0.1:
        closed = np.maximum(closed, np.clip(1.4 - np.abs(times - now) / 0.07, 0, 1))
        now += rng.uniform(1.5, 4)
    return closed.astype(np.float32)


def _length(x: Floats, y: Floats) -> Floats:
    """Much faster than np.hypot, which guards against overflow."""
    return np.sqrt(x * x + y * y)


def _colour(rng: np.random.Generator) -> Colour:
    """A clear colour of any hue."""
    red, green, blue = 0.5 + 0.32 * np.cos(2 * np.pi * (rng.uniform() + np.arange(3) / 3))
    return float(red), float(green), float(blue)


def _mix(a: Colour, b: Colour, share_of_b: float) -> Colour:
    red, green, blue = (p + (q - p) * float(share_of_b) for p, q in zip(a, b, strict=True))
    return red, green, blue
