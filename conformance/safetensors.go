package conformance

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/verify/attest"
)

// Golden numbers are kept as bits, in the safetensors format: "8 bytes N, an
// unsigned little-endian 64-bit integer, the size of the header; N bytes, a
// JSON string; the rest, byte buffer" (https://github.com/huggingface/safetensors).

// The element types, in the words of the Open Inference Protocol and of
// safetensors.
var safetensorTypes = map[string]string{
	"BOOL": "BOOL", "UINT8": "U8", "INT8": "I8", "UINT16": "U16", "INT16": "I16", "UINT32": "U32", "INT32": "I32", "UINT64": "U64", "INT64": "I64",
	"FP16": "F16", "BF16": "BF16", "FP32": "F32", "FP64": "F64",
}

// oipTypes is the reverse.
var oipTypes = func() map[string]string {
	m := map[string]string{}
	for oip, st := range safetensorTypes {
		m[st] = oip
	}
	return m
}()

type safetensor struct {
	Dtype   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// writeTensors renders tensors under their keys, in the order of the keys.
func writeTensors(tensors map[string]compare.Tensor) ([]byte, error) {
	header := map[string]safetensor{}
	var data []byte
	for _, k := range slices.Sorted(maps.Keys(tensors)) {
		t := tensors[k]
		dtype, ok := safetensorTypes[t.Datatype]
		if !ok {
			return nil, fmt.Errorf("tensor %s: datatype %q cannot be stored", k, t.Datatype)
		}
		begin := int64(len(data))
		data = append(data, t.Bits...)
		header[k] = safetensor{dtype, t.Shape, [2]int64{begin, int64(len(data))}}
	}
	raw, err := json.Marshal(header) // keys in order
	if err != nil {
		return nil, err
	}
	for len(raw)%8 != 0 {
		raw = append(raw, ' ') // "the header may be padded with spaces"
	}
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(raw)))
	return append(append(out, raw...), data...), nil
}

// readTensors is the reverse. name gives a tensor its name from its key.
func readTensors(raw []byte, name func(key string) string) (map[string]compare.Tensor, error) {
	if len(raw) < 8 {
		return nil, fmt.Errorf("tensors: %d bytes are no safetensors file", len(raw))
	}
	n := binary.LittleEndian.Uint64(raw)
	if n > uint64(len(raw)-8) {
		return nil, fmt.Errorf("tensors: the header has %d bytes and the file %d", n, len(raw))
	}
	// The numbers are copied, so that the header, which is larger where tensors
	// are small, is not kept with them.
	head, data := bytes.TrimRight(raw[8:8+n], " "), bytes.Clone(raw[8+n:])
	if err := attest.CheckJSON(head); err != nil {
		return nil, fmt.Errorf("tensors: header: %w", err)
	}
	var header map[string]safetensor
	if err := json.Unmarshal(head, &header); err != nil {
		return nil, fmt.Errorf("tensors: header: %w", err)
	}
	out := make(map[string]compare.Tensor, len(header))
	// Most tensors of a suite have one of few names and shapes: one copy of each.
	names, shapes := map[string]string{}, map[string][]int64{}
	for k, h := range header {
		shape := fmt.Sprint(h.Shape)
		if _, ok := shapes[shape]; !ok {
			shapes[shape] = slices.Clone(h.Shape)
		}
		short := name(k)
		if _, ok := names[short]; !ok {
			names[short] = strings.Clone(short)
		}
		t := compare.Tensor{Name: names[short], Shape: shapes[shape], Datatype: oipTypes[h.Dtype]}
		if h.Offsets[0] < 0 || h.Offsets[1] < h.Offsets[0] || h.Offsets[1] > int64(len(data)) {
			return nil, fmt.Errorf("tensors: %s: offsets %v lie outside the file", k, h.Offsets)
		}
		t.Bits = data[h.Offsets[0]:h.Offsets[1]]
		if _, err := t.Values(); err != nil {
			return nil, fmt.Errorf("tensors: %s: %w", k, err)
		}
		out[k] = t
	}
	return out, nil
}
