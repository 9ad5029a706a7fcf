"""make.py: writes the files beside it, with onnx 1.12 and numpy 1.24 (Debian's python3-onnx and python3-numpy)."""
import json, os
import numpy as np, onnx
from onnx import numpy_helper, helper, TensorProto

os.chdir(os.path.dirname(os.path.abspath(__file__)))
x = np.array([[1.5, -2.25, 0.1], [3, 4, 5]], dtype=np.float32)

# ONNX: as onnx's backend tests write them, and every type in both ways to hold elements.
for n, rows in enumerate(([0], [1])):
    d = f"onnx/test_data_set_{n}"
    os.makedirs(d, exist_ok=True)
    open(d + "/input_0.pb", "wb").write(numpy_helper.from_array(x[rows], "features").SerializeToString())
    open(d + "/output_0.pb", "wb").write(numpy_helper.from_array(np.array([[0.25, 0.75]], np.float32), "probabilities").SerializeToString())
os.makedirs("tensorproto", exist_ok=True)
want = {}
for name, dtype in (("FLOAT", np.float32), ("DOUBLE", np.float64), ("INT8", np.int8), ("INT16", np.int16), ("INT32", np.int32), ("INT64", np.int64),
                    ("UINT8", np.uint8), ("UINT16", np.uint16), ("UINT32", np.uint32), ("UINT64", np.uint64), ("BOOL", np.bool_), ("FLOAT16", np.float16)):
    a = np.array([[0, 1, 2], [100, 1, 0]]).astype(dtype)
    if np.issubdtype(dtype, np.signedinteger) or np.issubdtype(dtype, np.floating):
        a[1, 2] = -7
    open(f"tensorproto/{name}.raw.pb", "wb").write(numpy_helper.from_array(a, name).SerializeToString())
    vals = a.flatten()
    if name == "FLOAT16":
        vals = vals.view(np.uint16)
    open(f"tensorproto/{name}.typed.pb", "wb").write(helper.make_tensor(name, getattr(TensorProto, name), a.shape, [v.item() for v in (a.flatten())]).SerializeToString())
    want[name] = [v.item() if dtype is not np.bool_ else int(v) for v in a.flatten()]
bf = helper.make_tensor("BFLOAT16", TensorProto.BFLOAT16, (2,), [1.5, -2.0])
open("tensorproto/BFLOAT16.typed.pb", "wb").write(bf.SerializeToString())
open("tensorproto/STRING.typed.pb", "wb").write(helper.make_tensor("STRING", TensorProto.STRING, (1,), [b"text"]).SerializeToString())
json.dump(want, open("tensorproto/want.json", "w"), indent=1)

# NumPy: both orders of elements, both byte orders, half precision, text, and a header of version 2.
np.savez("arrays.npz", features=x, fortran=np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)), big=x.astype(">f8"),
         half=np.array([0.5, -65504], np.float16), labels=np.array([1, 0]), names=np.array(["a", "b"]), probabilities=np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
np.savez_compressed("other.npz", x=np.zeros((3, 2), np.float32), y=np.zeros((4, 2), np.float32))
with open("version2.npy", "wb") as f:
    np.lib.format.write_array(f, x, version=(2, 0))
