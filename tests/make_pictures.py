"Makers of small picture files of many kinds, for tests."

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from bcss_nb.core.labels import get_schema
from bcss_nb.data.simulator import simulate_roi
from bcss_nb.inference.engines import Engine


class Brightest(Engine):
    "An engine that costs nothing: the class of a pixel is its brightest band, whatever window it lies in."

    name = 'brightest'

    def __init__(self):
        super().__init__('unet', get_schema('bcss3'), 224, id='brightest')

    def run(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)


class Everywhere(Engine):
    "An engine that costs nothing and sees class 1, tumor, everywhere."

    name = 'everywhere'

    def __init__(self):
        super().__init__('unet', get_schema('bcss3'), 224, id='everywhere')

    def run(self, x: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(x), 3, *x.shape[1:3]), np.float32)
        logits[:, 1] = 1
        return logits


def tinted(seed: int = 4, shape: tuple = (250, 300), block: int = 50) -> np.ndarray:
    "Return (H, W, 3) uint8 simulated tissue in blocks of a red, a green and a blue tint."
    gray = simulate_roi(seed, shape=shape)[1].mean(-1).clip(60, 235)
    rows, columns = np.indices(shape) // block
    brightest = (rows + columns + rows // 2) % 3
    share = np.where(np.arange(3) == brightest[..., None], 1, 0.55)
    return (gray[..., None] * share).round().astype(np.uint8)


def brightest_band(rgb: np.ndarray) -> np.ndarray:
    "Return the (H, W) uint8 map that `Brightest` makes of (H, W, 3) pixels."
    return rgb.argmax(-1).astype(np.uint8)


# ---- kinds of pixels ----------------------------------------------------------------------------------------------
class Kind(NamedTuple):
    "A kind of file: how it is made, and whether it is read as the same picture or refused by name."

    name: str  # with its ending
    make: object  # (path, (H, W, 3) uint8 pixels) -> None
    refused: str = ''  # regular expression that the refusal contains, in any case; '' where it is accepted
    agreement: float = 1.0  # smallest share of pixels whose class is that of the PNG
    served: bool = True  # whether the service takes files of this format


def rgba_of(rgb: np.ndarray, alpha: int = 255) -> np.ndarray:
    "Return (H, W, 4) uint8 pixels of one alpha."
    return np.dstack([rgb, np.full(rgb.shape[:2], alpha, np.uint8)])


def gray_of(rgb: np.ndarray) -> np.ndarray:
    "Return (H, W) uint8 luminance."
    return np.asarray(Image.fromarray(rgb).convert('L'))


def palette_of(rgb: np.ndarray) -> tuple:
    "Return (H, W) uint8 indices and (256, 3) uint8 colors."
    picture = Image.fromarray(rgb).quantize(256)
    colors = np.zeros((256, 3), np.uint8)
    found = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
    colors[: len(found)] = found
    return np.asarray(picture), colors


def cmyk_of(rgb: np.ndarray) -> np.ndarray:
    "Return (H, W, 4) uint8 inks."
    return np.asarray(Image.fromarray(rgb).convert('CMYK'))


def with_pillow(mode: str = '', file_format: str = '', **options):
    "Return a maker that converts to a mode and saves."

    def make(path: Path, rgb: np.ndarray):
        picture = Image.fromarray(rgb)
        (picture.convert(mode) if mode else picture).save(path, file_format or None, **options)

    return make


def palette_png(path: Path, rgb: np.ndarray, **options):
    "Write an 8-bit palette PNG."
    Image.fromarray(rgb).quantize(256).save(path, **options)


def png(path: Path, pixels: np.ndarray, color_type: int):
    "Write a PNG of any depth and color type, which Pillow cannot do for 16 bits."
    depth = pixels.dtype.itemsize * 8
    raw = pixels.astype(pixels.dtype.newbyteorder('>')).tobytes()
    row = len(raw) // len(pixels)
    lines = b''.join(b'\0' + raw[i : i + row] for i in range(0, len(raw), row))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    header = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], depth, color_type, 0, 0, 0)
    body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + body)


def png16(color_type: int):
    "Return a maker of 16-bit PNGs: color type 0 gray, 2 RGB, 6 RGBA."

    def make(path: Path, rgb: np.ndarray):
        pixels = {0: gray_of(rgb), 2: rgb, 6: rgba_of(rgb)}[color_type]
        png(path, pixels.astype(np.uint16) * 257, color_type)

    return make


def jpeg(path: Path, rgb: np.ndarray, **options):
    "Write a JPEG with an inner color space of choice."
    path.write_bytes(imagecodecs.jpeg8_encode(rgb, level=95, **options))


def jpeg_cmyk(path: Path, rgb: np.ndarray, outcolorspace: str = 'CMYK'):
    "Write a JPEG of four inks."
    path.write_bytes(imagecodecs.jpeg8_encode(cmyk_of(rgb), level=95, colorspace='CMYK', outcolorspace=outcolorspace))


def tiff(convert=None, **options):
    "Return a maker of TIFFs; `convert` turns pixels into what is written."

    def make(path: Path, rgb: np.ndarray):
        pixels = convert(rgb) if convert else rgb
        tifffile.imwrite(path, pixels, **{'photometric': 'rgb', 'metadata': None, **options})

    return make


def palette_tiff(**options):
    "Return a maker of palette TIFFs."

    def make(path: Path, rgb: np.ndarray):
        index, colors = palette_of(rgb)
        colormap = colors.T.astype(np.uint16) * 257
        tifffile.imwrite(path, index, photometric='palette', colormap=colormap, metadata=None, **options)

    return make


def palette_alpha_tiff(path: Path, rgb: np.ndarray):
    "Write a TIFF of 8-bit palette indices with an opaque alpha band."
    Image.fromarray(rgb).quantize(256).convert('PA').save(path)


def palette16_tiff(path: Path, rgb: np.ndarray):
    "Write a TIFF of 16-bit palette indices."
    index, colors = palette_of(rgb)
    colormap = np.zeros((3, 2**16), np.uint16)
    colormap[:, :256] = colors.T.astype(np.uint16) * 257
    tifffile.imwrite(path, index.astype(np.uint16), photometric='palette', colormap=colormap, metadata=None)


def ycbcr_of(rgb: np.ndarray) -> np.ndarray:
    "Return (H, W, 3) uint8 luma and chroma."
    return np.asarray(Image.fromarray(rgb).convert('YCbCr'))


def lab_of(rgb: np.ndarray) -> np.ndarray:
    "Return (H, W, 3) uint8 bands that stand for CIELAB."
    return np.dstack([gray_of(rgb), rgb[..., 0] // 2, rgb[..., 2] // 2])


def sixteen(rgb: np.ndarray) -> np.ndarray:
    "Return the same pixels in 16 bits."
    return rgb.astype(np.uint16) * 257


def real(rgb: np.ndarray) -> np.ndarray:
    "Return the same pixels in float32, 0 to 1."
    return rgb.astype(np.float32) / 255


def planes(rgb: np.ndarray) -> np.ndarray:
    "Return (3, H, W)."
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def two_bands(rgb: np.ndarray) -> np.ndarray:
    "Return (H, W, 2)."
    return np.ascontiguousarray(rgb[..., :2])


def five_bands(rgb: np.ndarray) -> np.ndarray:
    "Return (H, W, 5)."
    return np.dstack([rgb, rgb[..., :2]])


def gray_and_alpha(rgb: np.ndarray) -> np.ndarray:
    "Return (H, W, 2)."
    return np.dstack([gray_of(rgb), np.full(rgb.shape[:2], 255, np.uint8)])


def ome_tiff(axes: str, convert=None, **options):
    "Return a maker of OME-TIFFs of some axes."

    def make(path: Path, rgb: np.ndarray):
        pixels = convert(rgb) if convert else rgb
        photometric = 'rgb' if axes.endswith('S') else 'minisblack'
        tifffile.imwrite(path, pixels, ome=True, photometric=photometric, metadata=dict(axes=axes), **options)

    return make


def imagej_composite(path: Path, rgb: np.ndarray):
    "Write three 8-bit channels as ImageJ does."
    tifffile.imwrite(path, planes(rgb), imagej=True, metadata=dict(axes='CYX', mode='composite'))


TILES = dict(tile=(128, 128))
STRIPS = dict(rowsperstrip=16)

KINDS = (
    Kind('rgb.png', with_pillow()),
    Kind('rgba.png', with_pillow('RGBA')),
    Kind('palette.png', palette_png, agreement=0.97),
    Kind('rgb_color_key.png', with_pillow(transparency=(1, 2, 3))),
    Kind('palette_alpha.png', lambda path, rgb: palette_png(path, rgb, transparency=b'\xff' * 256), agreement=0.97),
    Kind('gray.png', with_pillow('L'), 'gr[ae]y'),
    Kind('gray_alpha.png', with_pillow('LA'), 'gr[ae]y'),
    Kind('gray_color_key.png', with_pillow('L', transparency=7), 'gr[ae]y'),
    Kind('bilevel.png', with_pillow('1'), '1-bit|bilevel|gr[ae]y|black and white'),
    Kind('rgb16.png', png16(2), '16-bit'),
    Kind('rgba16.png', png16(6), '16-bit'),
    Kind('gray16.png', png16(0), '16-bit'),
    Kind('ycbcr444.jpg', with_pillow(quality=95, subsampling=0), agreement=0.99),
    Kind('ycbcr420.jpg', with_pillow(quality=95, subsampling=2), agreement=0.98),
    Kind('progressive.jpg', with_pillow(quality=95, subsampling=0, progressive=True), agreement=0.99),
    Kind('rgb.jpg', with_pillow(quality=95, keep_rgb=True), agreement=0.99),
    Kind('cmyk.jpg', jpeg_cmyk, 'cmyk'),
    Kind('ycck.jpg', lambda path, rgb: jpeg_cmyk(path, rgb, 'YCCK'), 'cmyk|ycck'),
    Kind('gray.jpg', with_pillow('L'), 'gr[ae]y'),
    Kind('rgb.webp', with_pillow(lossless=True)),
    Kind('rgba.webp', with_pillow('RGBA', lossless=True)),
    Kind('rgb.bmp', with_pillow(), served=False),
    Kind('palette.bmp', lambda path, rgb: palette_png(path, rgb), agreement=0.97, served=False),
    Kind('strips.tif', tiff(**STRIPS)),
    Kind('strips_lzw.tif', tiff(**STRIPS, compression='lzw', predictor=True)),
    Kind('strips_deflate.tif', tiff(**STRIPS, compression='zlib')),
    Kind('strips_packbits.tif', tiff(**STRIPS, compression='packbits')),
    Kind('strips_zstd.tif', tiff(**STRIPS, compression='zstd')),
    Kind('strips_jpeg.tif', tiff(**STRIPS, compression='jpeg', compressionargs=dict(level=95)), agreement=0.98),
    Kind('strips_big_endian.tif', tiff(**STRIPS, byteorder='>')),
    Kind('strips_bigtiff.tif', tiff(**STRIPS, bigtiff=True)),
    Kind('tiles.tif', tiff(**TILES)),
    Kind('tiles_lzw.tif', tiff(**TILES, compression='lzw', predictor=True)),
    Kind('tiles_zstd.tif', tiff(**TILES, compression='zstd')),
    Kind('tiles_jpeg.tif', tiff(**TILES, compression='jpeg', compressionargs=dict(level=95)), agreement=0.98),
    Kind(
        'tiles_jpeg_rgb.tif',
        tiff(**TILES, compression='jpeg', compressionargs=dict(level=95, outcolorspace='RGB')),
        agreement=0.98,
    ),
    Kind('tiles_webp.tif', tiff(**TILES, compression='webp', compressionargs=dict(lossless=True))),
    Kind('tiles_jpeg2000.tif', tiff(**TILES, compression='jpeg2000')),
    Kind('tiles_jpegxl.tif', tiff(**TILES, compression='jpegxl')),
    Kind('tiles_lerc.tif', tiff(**TILES, compression='lerc')),
    Kind('strips_planar.tif', tiff(planes, **STRIPS, planarconfig='separate')),
    Kind('tiles_planar.tif', tiff(planes, **TILES, planarconfig='separate', compression='zlib')),
    Kind('strips_rgba.tif', tiff(rgba_of, **STRIPS, extrasamples=['unassalpha'])),
    Kind('tiles_rgba.tif', tiff(rgba_of, **TILES, extrasamples=['unassalpha'])),
    Kind('strips_rgba_associated.tif', tiff(rgba_of, **STRIPS, extrasamples=['assocalpha'])),
    Kind('tiles_rgba_associated.tif', tiff(rgba_of, **TILES, extrasamples=['assocalpha'])),
    Kind('strips_palette.tif', palette_tiff(**STRIPS), agreement=0.97),
    Kind('tiles_palette.tif', palette_tiff(**TILES), agreement=0.97),
    Kind('strips_palette_alpha.tif', palette_alpha_tiff, agreement=0.97),
    Kind('strips_ome.ome.tif', ome_tiff('YXS', **STRIPS)),
    Kind('tiles_ome.ome.tif', ome_tiff('YXS', **TILES)),
    Kind('strips_palette16.tif', palette16_tiff, '16-bit'),
    Kind('strips_cmyk.tif', tiff(cmyk_of, **STRIPS, photometric='separated'), 'cmyk'),
    Kind('tiles_cmyk.tif', tiff(cmyk_of, **TILES, photometric='separated'), 'cmyk'),
    Kind('tiles_cmyk_jpeg.tif', tiff(cmyk_of, **TILES, photometric='separated', compression='jpeg'), 'cmyk'),
    Kind('strips_ycbcr_lzw.tif', tiff(ycbcr_of, **STRIPS, photometric='ycbcr', compression='lzw'), 'ycbcr'),
    Kind('tiles_ycbcr_lzw.tif', tiff(ycbcr_of, **TILES, photometric='ycbcr', compression='lzw'), 'ycbcr'),
    Kind('strips_ycbcr.tif', tiff(ycbcr_of, **STRIPS, photometric='ycbcr'), 'ycbcr'),
    Kind('strips_cielab.tif', tiff(lab_of, **STRIPS, photometric='cielab'), 'lab'),
    Kind('tiles_cielab.tif', tiff(lab_of, **TILES, photometric='cielab'), 'lab'),
    Kind('strips_gray.tif', tiff(gray_of, **STRIPS, photometric='minisblack'), 'gr[ae]y'),
    Kind('tiles_gray.tif', tiff(gray_of, **TILES, photometric='minisblack'), 'gr[ae]y'),
    Kind('tiles_white_is_zero.tif', tiff(gray_of, **TILES, photometric='miniswhite'), 'gr[ae]y'),
    Kind(
        'strips_gray_alpha.tif',
        tiff(gray_and_alpha, **STRIPS, photometric='minisblack', planarconfig='contig', extrasamples=['unassalpha']),
        'gr[ae]y',
    ),
    Kind(
        'tiles_gray_alpha.tif',
        tiff(gray_and_alpha, **TILES, photometric='minisblack', planarconfig='contig', extrasamples=['unassalpha']),
        'gr[ae]y',
    ),
    Kind('strips_rgb16.tif', tiff(sixteen, **STRIPS), '16-bit'),
    Kind('tiles_rgb16.tif', tiff(sixteen, **TILES), '16-bit'),
    Kind('strips_planar16.tif', tiff(lambda rgb: planes(sixteen(rgb)), **STRIPS, planarconfig='separate'), '16-bit'),
    Kind('strips_float.tif', tiff(real, **STRIPS), 'float'),
    Kind('tiles_float.tif', tiff(real, **TILES), 'float'),
    Kind('strips_four_bands.tif', tiff(rgba_of, **STRIPS, extrasamples=['unspecified']), '4 bands|fourth|extra'),
    Kind('tiles_four_bands.tif', tiff(rgba_of, **TILES, extrasamples=['unspecified']), '4 bands|fourth|extra'),
    Kind('strips_two_bands.tif', tiff(two_bands, **STRIPS, photometric='minisblack', planarconfig='contig'), '2 bands'),
    Kind('tiles_two_bands.tif', tiff(two_bands, **TILES, photometric='minisblack', planarconfig='contig'), '2 bands'),
    Kind('strips_five_bands.tif', tiff(five_bands, **STRIPS), '5 bands'),
    Kind('tiles_five_bands.tif', tiff(five_bands, **TILES), '5 bands'),
    Kind('strips_channels.ome.tif', ome_tiff('CYX', planes, **STRIPS), '3 separate channels|cyx'),
    Kind('tiles_channels.ome.tif', ome_tiff('CYX', planes, **TILES), '3 separate channels|cyx'),
    Kind('imagej_composite.tif', imagej_composite, '3 separate channels|cyx'),
)


# ---- the size of a pixel: ways to state 0.5 µm --------------------------------------------------------------------
class Way(NamedTuple):
    "A way to state that a pixel is 0.5 µm wide."

    file: str  # name of the file
    make: object  # (path, (H, W, 3) uint8 pixels) -> None


def imagej_tiff(unit: str, per_unit: float):
    "Return a maker of TIFFs whose unit stands in the description, as ImageJ writes it."

    def make(path: Path, rgb: np.ndarray):
        description = f'ImageJ=1.53t\nimages=1\nunit={unit}\nloop=false\n'
        tifffile.imwrite(
            path,
            rgb,
            photometric='rgb',
            metadata=None,
            description=description,
            resolution=(per_unit, per_unit),
            resolutionunit='NONE',
        )

    return make


def ome_xml(pixels: list) -> bytes:
    "Return the header of an OME-TIFF; each image is (width, height, attributes of its pixels)."
    images = ''.join(
        f'<Image ID="Image:{i}" Name="{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYCZT" Type="uint8" SizeX="{width}"'
        f' SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1" {attributes}><Channel ID="Channel:{i}:0" '
        'SamplesPerPixel="3"/>'
        f'<TiffData IFD="{i}" PlaneCount="1"/></Pixels></Image>'
        for i, (width, height, attributes) in enumerate(pixels)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'{images}</OME>'
    ).encode()


def stated(size: str, unit: str = '', size_y: str = '', unit_y: str = '') -> str:
    "Return the attributes of OME pixels that state their size."
    axes = (('X', size, unit), ('Y', size_y or size, unit_y or unit))
    sizes = [f'PhysicalSize{axis}="{value}"' for axis, value, _ in axes]
    units = [f'PhysicalSize{axis}Unit="{name}"' for axis, _, name in axes if name]
    return ' '.join(sizes + units)


def ome_size(*size: str):
    "Return a maker of OME-TIFFs whose header states a size, see `stated`."

    def make(path: Path, rgb: np.ndarray):
        xml = ome_xml([(rgb.shape[1], rgb.shape[0], stated(*size))])
        tifffile.imwrite(path, rgb, photometric='rgb', metadata=None, description=xml, **TILES)

    return make


def ome_series(path: Path, rgb: np.ndarray):
    "Write an overview of 4 µm before the picture of 0.5 µm."
    small = np.ascontiguousarray(rgb[::8, ::8])
    sizes = [(small, stated('4', 'µm')), (rgb, stated('0.5', 'µm'))]
    xml = ome_xml([(pixels.shape[1], pixels.shape[0], text) for pixels, text in sizes])
    with tifffile.TiffWriter(path) as t:
        t.write(small, photometric='rgb', metadata=None, description=xml)
        t.write(rgb, photometric='rgb', metadata=None, **TILES)


def aperio(description: str):
    "Return a maker of Aperio slides with a description."

    def make(path: Path, rgb: np.ndarray):
        size = f'{rgb.shape[1]}x{rgb.shape[0]}'
        text = f'Aperio Image Library v12\r\n{size} [0,0 {size}] (256x256) JPEG/RGB Q=90|{description}'
        tifffile.imwrite(
            path,
            rgb,
            photometric='rgb',
            metadata=None,
            description=text,
            tile=(256, 256),
            compression='jpeg',
            compressionargs=dict(level=95),
        )

    return make


def jpeg_density(per_unit: int, unit: int):
    "Return a maker of JPEGs with dots per inch (unit 1) or per cm (unit 2) in their JFIF header."

    def make(path: Path, rgb: np.ndarray):
        Image.fromarray(rgb).save(path, quality=95, dpi=(300, 300))
        data = bytearray(path.read_bytes())
        at = data.index(b'JFIF\0') + 7
        data[at : at + 5] = struct.pack('>BHH', unit, per_unit, per_unit)
        path.write_bytes(data)

    return make


def tagged(resolution: tuple, unit: str, **options):
    "Return a maker of TIFFs with resolution tags."
    return tiff(resolution=resolution, resolutionunit=unit, **options)


WAYS = (
    Way('cm_strips.tif', tagged((20_000, 20_000), 'CENTIMETER', **STRIPS)),
    Way('cm_tiles.tif', tagged((20_000, 20_000), 'CENTIMETER', **TILES)),
    Way('inch_strips.tif', tagged((50_800, 50_800), 'INCH', **STRIPS)),
    Way('inch_tiles.tif', tagged((50_800, 50_800), 'INCH', **TILES)),
    Way('imagej_micron.tif', imagej_tiff('micron', 2)),
    Way('imagej_um.tif', imagej_tiff('um', 2)),
    Way('imagej_escaped.tif', imagej_tiff('\\u00B5m', 2)),
    Way('imagej_mm.tif', imagej_tiff('mm', 2000)),
    Way('imagej_cm.tif', imagej_tiff('cm', 20_000)),
    Way('imagej_inch.tif', imagej_tiff('inch', 50_800)),
    Way('ome_default.ome.tif', ome_size('0.5')),
    Way('ome_um.ome.tif', ome_size('0.5', 'um')),
    Way('ome_micro_sign.ome.tif', ome_size('0.5', '\u00b5m')),
    Way('ome_greek_mu.ome.tif', ome_size('0.5', '\u03bcm')),
    Way('ome_entity.ome.tif', ome_size('0.5', '&#181;m')),
    Way('ome_hexadecimal_entity.ome.tif', ome_size('0.5', '&#xB5;m')),
    Way('ome_greek_entity.ome.tif', ome_size('0.5', '&#956;m')),
    Way('ome_nm.ome.tif', ome_size('500', 'nm')),
    Way('ome_mm.ome.tif', ome_size('0.0005', 'mm')),
    Way('ome_cm.ome.tif', ome_size('5.0E-5', 'cm')),
    Way('ome_m.ome.tif', ome_size('5e-7', 'm')),
    Way('ome_in.ome.tif', ome_size(f'{0.5 / 25_400:.12f}', 'in')),
    Way('ome_series.ome.tif', ome_series),
    Way('aperio_mpp.svs', aperio('AppMag = 40|MPP = 0.5000')),
    Way('aperio_magnification.svs', aperio('AppMag = 20')),
    Way('png_density.png', with_pillow(dpi=(50_800, 50_800))),
    Way('jpeg_inch.jpg', jpeg_density(50_800, 1)),
    Way('jpeg_cm.jpg', jpeg_density(20_000, 2)),
    Way('TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.5000.png', with_pillow()),
    Way('name_MPP-0.5000.jpg', with_pillow(quality=95)),
    Way('name_MPP-0.5000.tif', tiff(**STRIPS)),
)


# ---- slides of scanners -------------------------------------------------------------------------------------------
def leica_scn(path: Path, parts: list, size: tuple, mpp: float = 0.25):
    """Write a Leica slide of width and height `size`, pixels, of which only `parts` were scanned.

    Each part is (x, y, (H, W, 3) uint8 pixels); OpenSlide tells their common rectangle as `openslide.bounds-*`.
    """
    nanometers = round(1000 * mpp)

    def image(ifd: int, objective: str, x: int, y: int, width: int, height: int, view: tuple) -> str:
        return (
            f'<image name="{ifd}" uuid="{ifd}"><device model="Leica SCN400" version="1.5"/>'
            f'<pixels sizeX="{width}" sizeY="{height}">'
            f'<dimension sizeX="{width}" sizeY="{height}" r="0" ifd="{ifd}"/></pixels>'
            f'<view sizeX="{view[0] * nanometers}" sizeY="{view[1] * nanometers}" offsetX="{x * nanometers}"'
            f' offsetY="{y * nanometers}" spacingZ="0"/>'
            f'<scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>'
            '<illuminationSettings><numericalAperture>0.65</numericalAperture>'
            '<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>'
        )

    images = [image(0, '1.25', 0, 0, 64, 64, size)]
    for ifd, (x, y, pixels) in enumerate(parts, 1):
        height, width = pixels.shape[:2]
        images.append(image(ifd, '40', x, y, width, height, (width, height)))
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="s">'
        f'<collection name="c" uuid="c" sizeX="{size[0] * nanometers}" sizeY="{size[1] * nanometers}">'
        f'{"".join(images)}</collection></scn>'
    )
    options = dict(photometric='rgb', metadata=None, compression='zlib')
    per_cm = 10_000 / mpp
    with tifffile.TiffWriter(path, bigtiff=True) as t:
        t.write(np.full((64, 64, 3), 240, np.uint8), tile=(64, 64), description=xml, **options)
        for _, _, pixels in parts:
            t.write(pixels, tile=(256, 256), resolution=(per_cm, per_cm), resolutionunit='CENTIMETER', **options)


def hamamatsu_vms(path: Path, rgb: np.ndarray, columns: int = 2):
    "Write a Hamamatsu slide: an index, a JPEG for every part, a map and a macro picture."
    stem, width = path.stem, rgb.shape[1] // columns
    options = dict(quality=95, subsampling=0, restart_marker_blocks=8)
    lines = ['[Virtual Microscope Specimen]', 'NoLayers=1', f'NoJpegColumns={columns}', 'NoJpegRows=1']
    for column in range(columns):
        place = f'({column},0)' if column else ''
        part = rgb[:, column * width : (column + 1) * width]
        Image.fromarray(part).save(path.with_name(f'{stem}{place}.jpg'), **options)
        lines.append(f'ImageFile{place}={stem}{place}.jpg')
    Image.fromarray(rgb[::8, ::8]).save(path.with_name(f'{stem}_map2.jpg'), **options)
    Image.fromarray(rgb[:64, :96]).save(path.with_name(f'{stem}_macro.jpg'))
    lines += [
        f'MapFile={stem}_map2.jpg',
        f'MacroImage={stem}_macro.jpg',
        f'PhysicalWidth={width * columns * 250}',
        f'PhysicalHeight={len(rgb) * 250}',
        'SourceLens=40',
    ]
    path.write_text('\n'.join(lines) + '\n')


def dicom_slide(path: Path, rgb: np.ndarray, series: str, mpp: float = 0.25, kind: str = 'VOLUME', number: int = 1):
    "Write one level of a slide of a series as DICOM, in JPEG tiles."
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, generate_uid

    tile = 128
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % tile), (0, -width % tile), (0, 0)), mode='edge')
    frames = [
        np.ascontiguousarray(padded[y : y + tile, x : x + tile])
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.77.1.6'
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    measures, groups, d = Dataset(), Dataset(), Dataset()
    measures.update(dict(PixelSpacing=[mpp / 1000, mpp / 1000], SliceThickness=0.001))
    groups.PixelMeasuresSequence = [measures]
    d.file_meta = meta
    d.update(
        dict(
            SOPClassUID=meta.MediaStorageSOPClassUID,
            SOPInstanceUID=meta.MediaStorageSOPInstanceUID,
            Modality='SM',
            StudyInstanceUID='1.2.3',
            SeriesInstanceUID=series,
            FrameOfReferenceUID='1.2.4',
            InstanceNumber=number,
            ImageType=['ORIGINAL', 'PRIMARY', kind, 'NONE'],
            SamplesPerPixel=3,
            PhotometricInterpretation='YBR_FULL_422',
            PlanarConfiguration=0,
            Rows=tile,
            Columns=tile,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
            NumberOfFrames=len(frames),
            TotalPixelMatrixColumns=width,
            TotalPixelMatrixRows=height,
            TotalPixelMatrixFocalPlanes=1,
            DimensionOrganizationType='TILED_FULL',
            NumberOfOpticalPaths=1,
            SharedFunctionalGroupsSequence=[groups],
        )
    )
    d.PixelData = encapsulate([imagecodecs.jpeg8_encode(frame, level=95) for frame in frames])
    d['PixelData'].is_undefined_length = True
    d.save_as(path, enforce_file_format=True)


# ---- area that nobody scanned -------------------------------------------------------------------------------------
def sparse_tiff(path: Path, rgb: np.ndarray, missing, **options):
    "Write a tiled TIFF without the tiles (row, column) for which `missing` is true."
    side = 128
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % side), (0, -width % side), (0, 0)))

    def tiles():
        for y in range(0, height, side):
            for x in range(0, width, side):
                yield (
                    None if missing(y // side, x // side) else np.ascontiguousarray(padded[y : y + side, x : x + side])
                )

    tifffile.imwrite(
        path, tiles(), shape=rgb.shape, dtype=np.uint8, tile=(side, side), photometric='rgb', metadata=None, **options
    )


def flat(shape: tuple, color: tuple, noise: int = 2, seed: int = 0) -> np.ndarray:
    "Return (H, W, 3) uint8 of one color with a little noise."
    grain = np.random.default_rng(seed).integers(-noise, noise + 1, (*shape, 3))
    return (np.array(color) + grain).clip(0, 255).astype(np.uint8)
