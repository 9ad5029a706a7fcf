// Package oip speaks the Open Inference Protocol v2 over REST with JSON
// tensors (https://github.com/kserve/open-inference-protocol,
// specification/protocol/inference_rest.md).
package oip

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// Name is the protocol's name in environment documents.
const Name = "oip-v2-rest"

// maxResponse bounds an answer, in bytes.
const maxResponse = 64 << 20

// Protocol implements [target.Protocol].
type Protocol struct{}

var _ target.Protocol = Protocol{}

type tensorJSON struct {
	Name     string          `json:"name"`
	Shape    []int64         `json:"shape"`
	Datatype string          `json:"datatype"`
	Data     json.RawMessage `json:"data"`
}

// Encode implements [target.Protocol]. Elements are written as the shortest
// decimal that reads back as the same bits.
func (Protocol) Encode(id string, inputs []compare.Tensor, outputs []string) ([]byte, error) {
	var b bytes.Buffer
	// Written by hand, so that the bytes are the same whatever becomes of
	// encoding/json: they are hashed.
	fmt.Fprintf(&b, `{"id":%s,"inputs":[`, quote(id))
	for i, t := range inputs {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":%s,"shape":[%s],"datatype":%s,"data":[`, quote(t.Name), join(t.Shape), quote(t.Datatype))
		values, err := t.Values()
		if err != nil {
			return nil, err
		}
		bits := 64
		if t.Datatype == "FP32" {
			bits = 32
		}
		for j, v := range values {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return nil, fmt.Errorf("input %s: element %d is %v, which JSON cannot say", t.Name, j, v)
			}
			if j > 0 {
				b.WriteByte(',')
			}
			b.Write(strconv.AppendFloat(nil, v, 'g', -1, bits))
		}
		b.WriteString("]}")
	}
	b.WriteString(`],"outputs":[`)
	for i, o := range outputs {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":%s}`, quote(o))
	}
	b.WriteString("]}")
	return b.Bytes(), nil
}

func quote(s string) string {
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string can be encoded
	}
	return string(raw)
}

func join(shape []int64) string {
	var parts []string
	for _, d := range shape {
		parts = append(parts, strconv.FormatInt(d, 10))
	}
	return strings.Join(parts, ",")
}

// Decode implements [target.Protocol].
func (Protocol) Decode(q target.Question, status int, response []byte) (*target.Answer, error) {
	if status != http.StatusOK {
		return nil, target.Wrongf("http", "status %d: %.200q", status, response)
	}
	// NaN and Infinity are no JSON; some servers write them all the same.
	if err := attest.CheckJSON(response); err != nil {
		if bytes.Contains(response, []byte("NaN")) || bytes.Contains(response, []byte("Infinity")) {
			return nil, target.Wrongf("not-finite", "the answer has numbers that are not finite: %.100q", response)
		}
		return nil, target.Wrongf("malformed", "%v: %.100q", err, response)
	}
	var r struct {
		Error   json.RawMessage `json:"error"`
		Model   string          `json:"model_name"`
		Version string          `json:"model_version"`
		ID      string          `json:"id"`
		Outputs []tensorJSON    `json:"outputs"`
	}
	if err := json.Unmarshal(response, &r); err != nil {
		return nil, target.Wrongf("malformed", "%v", err)
	}
	switch {
	case r.Error != nil:
		return nil, target.Wrongf("error-in-200", "the answer of status 200 is an error: %.200s", r.Error)
	case r.ID != q.ID:
		return nil, target.Wrongf("wrong-id", "the answer is to %q", r.ID)
	case r.Model != q.Model:
		return nil, target.Wrongf("wrong-model", "model %q answered", r.Model)
	case q.Version != "" && r.Version != q.Version:
		return nil, target.Wrongf("wrong-version", "version %q answered, not %q", r.Version, q.Version)
	}
	a := &target.Answer{Model: r.Model, Version: r.Version}
	seen := map[string]bool{}
	for _, o := range r.Outputs {
		if seen[o.Name] || !slices.Contains(q.Outputs, o.Name) {
			return nil, target.Wrongf("extra-output", "output %q was not asked for, or came twice", o.Name)
		}
		seen[o.Name] = true
		t, err := decodeTensor(o)
		if err != nil {
			return nil, err
		}
		a.Outputs = append(a.Outputs, t)
	}
	for _, name := range q.Outputs {
		if !seen[name] {
			return nil, target.Wrongf("missing-output", "output %q is missing", name)
		}
	}
	// Order is not promised by the protocol: ours is the question's.
	slices.SortFunc(a.Outputs, func(x, y compare.Tensor) int {
		return slices.Index(q.Outputs, x.Name) - slices.Index(q.Outputs, y.Name)
	})
	return a, nil
}

func decodeTensor(o tensorJSON) (compare.Tensor, error) {
	t := compare.Tensor{Name: o.Name, Datatype: o.Datatype, Shape: o.Shape}
	if o.Datatype != "FP32" && o.Datatype != "FP64" {
		return t, target.Wrongf("malformed", "output %q has datatype %q, which cannot be compared", o.Name, o.Datatype)
	}
	var numbers []json.Number
	if err := flatten(o.Data, &numbers); err != nil {
		return t, target.Wrongf("malformed", "output %q: %v", o.Name, err)
	}
	if n := compare.Elements(o.Shape); n != len(numbers) {
		return t, target.Wrongf("malformed", "output %q has %d elements for shape %v", o.Name, len(numbers), o.Shape)
	}
	for _, n := range numbers {
		if o.Datatype == "FP32" {
			v, err := strconv.ParseFloat(string(n), 32)
			if err != nil {
				return t, target.Wrongf("not-finite", "output %q: %s is no FP32", o.Name, n)
			}
			t.Bits = binary.LittleEndian.AppendUint32(t.Bits, math.Float32bits(float32(v)))
			continue
		}
		v, err := strconv.ParseFloat(string(n), 64)
		if err != nil {
			return t, target.Wrongf("not-finite", "output %q: %s is no FP64", o.Name, n)
		}
		t.Bits = binary.LittleEndian.AppendUint64(t.Bits, math.Float64bits(v))
	}
	return t, nil
}

// flatten reads numbers that are given flat or nested: "the data … can be
// presented in a nested or flattened form, row-major" (Tensor Data).
func flatten(raw json.RawMessage, out *[]json.Number) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch v := tok.(type) {
		case json.Number:
			*out = append(*out, v)
		case json.Delim:
			if v != '[' && v != ']' {
				return fmt.Errorf("data is no array of numbers")
			}
		case nil:
			return target.Wrongf("not-finite", "data has null in the place of a number")
		default:
			return fmt.Errorf("data has %v in the place of a number", tok)
		}
	}
}

// Target implements [target.Target] over HTTP.
type Target struct {
	Protocol
	base    string
	model   string
	version string
	client  *http.Client
}

var _ target.Target = (*Target)(nil)

// New returns the target that an environment document names.
func New(t attest.Target) (*Target, error) {
	if t.Protocol != Name {
		return nil, fmt.Errorf("protocol %q is not %s", t.Protocol, Name)
	}
	u, err := url.Parse(t.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("target url %q: write http://HOST:PORT", t.URL)
	}
	base := strings.TrimSuffix(t.URL, "/") + "/v2/models/" + url.PathEscape(t.Model)
	if t.Version != "" {
		base += "/versions/" + url.PathEscape(t.Version)
	}
	return &Target{base: base, model: t.Model, version: t.Version, client: &http.Client{
		// A redirect would be another server than the one that is measured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, DisableCompression: true, MaxIdleConnsPerHost: 64},
	}}, nil
}

// Send implements [target.Target].
func (t *Target) Send(ctx context.Context, request []byte) target.Exchange {
	x := target.Exchange{Sent: time.Now().UTC()}
	end := func(class string, err error) target.Exchange {
		x.Received = time.Now().UTC()
		if ctx.Err() != nil || isTimeout(err) {
			class = "timeout"
		}
		x.Status, x.Response = 0, nil
		x.Failure = &target.Failure{Class: class, Message: err.Error()}
		return x
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.base+"/infer", bytes.NewReader(request))
	if err != nil {
		return end("connection", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := t.client.Do(req)
	if err != nil {
		return end("connection", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	switch {
	case err != nil:
		return end("truncated", err)
	case len(body) > maxResponse:
		return end("too-large", fmt.Errorf("the answer has more than %d bytes", maxResponse))
	case len(body) == 0:
		return end("truncated", fmt.Errorf("status %d with an empty answer", resp.StatusCode))
	}
	x.Received, x.Status, x.Response = time.Now().UTC(), resp.StatusCode, body
	return x
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// Describe implements [target.Target].
func (t *Target) Describe(ctx context.Context) (target.Description, error) {
	var d target.Description
	root := t.base[:strings.Index(t.base, "/v2/models/")]
	if err := t.get(ctx, t.base+"/ready", nil); err != nil {
		return d, fmt.Errorf("model %s is not ready: %w", t.model, err)
	}
	var server struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	if err := t.get(ctx, root+"/v2", &server); err != nil {
		return d, err
	}
	type spec struct {
		Name     string  `json:"name"`
		Datatype string  `json:"datatype"`
		Shape    []int64 `json:"shape"`
	}
	var model struct {
		Name       string            `json:"name"`
		Versions   []string          `json:"versions"`
		Platform   string            `json:"platform"`
		Inputs     []spec            `json:"inputs"`
		Outputs    []spec            `json:"outputs"`
		Parameters map[string]string `json:"parameters"`
	}
	if err := t.get(ctx, t.base, &model); err != nil {
		return d, err
	}
	d = target.Description{
		Server: server.Name, ServerVersion: server.Version, Model: model.Name, Versions: model.Versions,
		Platform: model.Platform, Parameters: model.Parameters,
	}
	for _, s := range model.Inputs {
		d.Inputs = append(d.Inputs, target.Spec(s))
	}
	for _, s := range model.Outputs {
		d.Outputs = append(d.Outputs, target.Spec(s))
	}
	return d, nil
}

func (t *Target) get(ctx context.Context, address string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %.200s", address, resp.Status, body)
	}
	if out == nil {
		return nil // "ready" may have any body, or none
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("GET %s: %w", address, err)
	}
	return nil
}
