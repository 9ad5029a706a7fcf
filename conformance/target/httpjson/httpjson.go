// Package httpjson speaks to any HTTP service that takes JSON and gives JSON,
// from a template of the request and the places of the outputs in the answer
// (JSON Pointers, RFC 6901). KServe v1, TensorFlow Serving, Azure ML and the
// scoring service of somebody's own are a few lines of options each:
//
//	path: /v1/models/${model}:predict
//	body: {instances: "${inputs/features}"}
//	outputs:
//	  - {name: probabilities, at: /predictions, datatype: FP32, shape: [-1, 2]}
//	inputs:
//	  - {name: features, datatype: FP32, shape: [-1, 8]}
package httpjson

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/tensor"
	"github.com/assay-dev/assay/conformance/target/wire"
	"github.com/assay-dev/assay/verify/attest"
)

// Name is the protocol's name in environment documents.
const Name = "http-json"

// Options are those of a target document.
//
// In Path, in the values of Headers and in the texts of Body, ${id}, ${model}
// and ${version} stand for the question's. A text of Body that is nothing but
// ${inputs/NAME} becomes that tensor as nested lists, ${inputs/NAME/flat} as
// one list and ${inputs/NAME/shape} its shape; ${request} the question's JSON
// and ${request/POINTER} a part of it.
type Options struct {
	Path      string            `json:"path"`
	Headers   map[string]string `json:"headers,omitempty"`
	Body      json.RawMessage   `json:"body"`
	TokenFrom string            `json:"tokenFrom,omitempty"` // the environment variable with the bearer token

	// Ready is a path that answers with status 200 when the model can be asked.
	Ready string `json:"ready,omitempty"`

	Inputs  []Tensor `json:"inputs,omitempty"`
	Outputs []Tensor `json:"outputs,omitempty"`

	// Value is where the answer's value is, for services without tensors; ""
	// with no outputs is the whole answer.
	Value string `json:"value,omitempty"`

	// Where the answer says what it is an answer to, and who gave it: a
	// pointer, or "header:NAME". What is not given is not checked, but a
	// version that is asked for has to be.
	ID      string `json:"id,omitempty"`
	Model   string `json:"model,omitempty"`
	Version string `json:"version,omitempty"`

	// Error is where an error is, if there is one under status 200; "/error"
	// unless it is given.
	Error string `json:"error,omitempty"`
}

// A Tensor is an input or output of the service.
type Tensor struct {
	Name     string  `json:"name"`
	At       string  `json:"at,omitempty"` // a pointer; of outputs only
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"` // -1 for the batch; an output in a flat list is given it
}

// Protocol implements [target.Protocol].
type Protocol struct{ options Options }

var _ target.Protocol = Protocol{}

// NewProtocol returns the protocol of a target.
func NewProtocol(t attest.Target) (Protocol, error) {
	var p Protocol
	if t.Protocol != Name {
		return p, fmt.Errorf("protocol %q is not %s", t.Protocol, Name)
	}
	if err := t.ReadOptions(&p.options); err != nil {
		return p, err
	}
	o := &p.options
	if o.Error == "" {
		o.Error = "/error"
	}
	refuse := func(format string, a ...any) (Protocol, error) {
		return p, fmt.Errorf("options of protocol %s: "+format, append([]any{Name}, a...)...)
	}
	switch {
	case !strings.HasPrefix(o.Path, "/"):
		return refuse("path %q has no slash in front", o.Path)
	case o.Body == nil:
		return refuse("body is missing")
	case len(o.Outputs) > 0 && o.Value != "":
		return refuse("there are outputs and a value: an answer is one or the other")
	case t.Version != "" && o.Version == "":
		return refuse("version %s is to answer, and version does not say where an answer says so", t.Version)
	}
	for _, list := range [][]Tensor{o.Inputs, o.Outputs} {
		seen := map[string]bool{}
		for _, x := range list {
			if _, ok := tensor.Widths[x.Datatype]; !ok || x.Name == "" || seen[x.Name] {
				return refuse("tensor %q has datatype %q, or is there twice", x.Name, x.Datatype)
			}
			seen[x.Name] = true
		}
	}
	for _, at := range append([]string{o.Value, o.ID, o.Model, o.Version, o.Error}, pointers(o.Outputs)...) {
		if header, ok := strings.CutPrefix(at, "header:"); ok && !slices.Contains(wire.Evidence(), http.CanonicalHeaderKey(header)) {
			return refuse("header %s is not kept; those that are: %s", header, strings.Join(wire.Evidence(), ", "))
		} else if !ok && at != "" && at[0] != '/' {
			return refuse("%q is no JSON Pointer: it begins with a slash", at)
		}
	}
	if _, err := p.body(target.Question{Model: "m", Request: json.RawMessage("{}")}, true); err != nil {
		return refuse("body: %w", err)
	}
	return p, nil
}

func pointers(list []Tensor) (at []string) {
	for _, o := range list {
		at = append(at, o.At)
	}
	return at
}

var variable = regexp.MustCompile(`\$\{([^}]*)\}`)

// words replaces the variables that are texts. escape is for where they stand.
func words(s string, q target.Question, escape func(string) string) (string, error) {
	var err error
	out := variable.ReplaceAllStringFunc(s, func(v string) string {
		switch name := v[2 : len(v)-1]; name {
		case "id":
			return escape(q.ID)
		case "model":
			return escape(q.Model)
		case "version":
			return escape(q.Version)
		default:
			err = fmt.Errorf("%s is none of ${id}, ${model} and ${version}, and cannot stand within a text", v)
			return ""
		}
	})
	return out, err
}

func plain(s string) string { return s }

// body fills the template. With check set, what depends on the question is
// left out.
func (p Protocol) body(q target.Question, check bool) ([]byte, error) {
	var b bytes.Buffer
	err := p.fill(&b, p.options.Body, q, check)
	return b.Bytes(), err
}

func (p Protocol) fill(b *bytes.Buffer, template json.RawMessage, q target.Question, check bool) error {
	template = bytes.TrimSpace(template)
	switch {
	case len(template) == 0:
		return errors.New("it is empty")
	case template[0] == '"':
		var s string
		if err := json.Unmarshal(template, &s); err != nil {
			return err
		}
		if m := variable.FindStringSubmatch(s); m != nil && m[0] == s {
			done, err := p.value(b, m[1], q, check)
			if done || err != nil {
				return err
			}
		}
		s, err := words(s, q, plain)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(s)
		b.Write(raw)
		return err
	case template[0] == '[':
		var list []json.RawMessage
		if err := json.Unmarshal(template, &list); err != nil {
			return err
		}
		b.WriteByte('[')
		for i, v := range list {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := p.fill(b, v, q, check); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	case template[0] == '{':
		var members map[string]json.RawMessage
		if err := json.Unmarshal(template, &members); err != nil {
			return err
		}
		b.WriteByte('{')
		for i, k := range slices.Sorted(maps.Keys(members)) {
			if i > 0 {
				b.WriteByte(',')
			}
			name, err := json.Marshal(k)
			if err != nil {
				return err
			}
			b.Write(append(name, ':'))
			if err := p.fill(b, members[k], q, check); err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
		}
		b.WriteByte('}')
	default:
		return json.Compact(b, template)
	}
	return nil
}

// value writes a variable that is a value of its own, or says that it is none.
func (p Protocol) value(b *bytes.Buffer, name string, q target.Question, check bool) (done bool, err error) {
	if rest, ok := strings.CutPrefix(name, "request"); ok && (rest == "" || rest[0] == '/') {
		if check {
			return true, nil
		}
		v, err := At(q.Request, rest)
		if err != nil {
			return true, fmt.Errorf("the question's request: %w", err)
		}
		return true, json.Compact(b, v)
	}
	input, ok := strings.CutPrefix(name, "inputs/")
	if !ok {
		return false, nil
	}
	input, flat := strings.CutSuffix(input, "/flat")
	input, shape := strings.CutSuffix(input, "/shape")
	if !slices.ContainsFunc(p.options.Inputs, func(t Tensor) bool { return t.Name == input }) {
		return true, fmt.Errorf("${%s}: the options have no input %s", name, input)
	}
	if check {
		return true, nil
	}
	i := slices.IndexFunc(q.Inputs, func(t compare.Tensor) bool { return t.Name == input })
	if i < 0 {
		return true, fmt.Errorf("the question has no input %s", input)
	}
	t := q.Inputs[i]
	if err := tensor.Check(t); err != nil {
		return true, fmt.Errorf("input %s: %w", input, err)
	}
	if shape {
		raw, err := json.Marshal(t.Shape)
		b.Write(raw)
		return true, err
	}
	if flat {
		b.WriteByte('[')
		err := tensor.WriteJSON(b, t)
		b.WriteByte(']')
		return true, err
	}
	return true, tensor.WriteNestedJSON(b, t)
}

// Encode implements [target.Protocol]: the body. Path and headers follow from
// the environment, and the id from the body where the template has it.
func (p Protocol) Encode(q target.Question) ([]byte, error) {
	if (q.Request == nil) == (len(q.Inputs) == 0) {
		return nil, fmt.Errorf("question %s has neither tensors nor JSON, or both", q.ID)
	}
	if (len(p.options.Inputs) > 0) != (len(q.Inputs) > 0) {
		return nil, fmt.Errorf("question %s has %d tensors, and the options %d inputs", q.ID, len(q.Inputs), len(p.options.Inputs))
	}
	if q.Request != nil {
		if err := attest.CheckJSON(q.Request); err != nil {
			return nil, fmt.Errorf("question %s: %w", q.ID, err)
		}
	}
	raw, err := p.body(q, false)
	if err != nil {
		return nil, fmt.Errorf("question %s: %w", q.ID, err)
	}
	return raw, nil
}

// At returns the value at a JSON Pointer (RFC 6901), "" or one that begins with a
// slash.
func At(doc json.RawMessage, pointer string) (json.RawMessage, error) {
	if pointer == "" {
		return doc, nil
	}
	for _, step := range strings.Split(pointer[1:], "/") {
		// "first transforming any occurrence of the sequence '~1' to '/', and
		// then … '~0' to '~'" (RFC 6901, section 4).
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		doc = bytes.TrimSpace(doc)
		if len(doc) > 0 && doc[0] == '[' {
			var list []json.RawMessage
			if err := json.Unmarshal(doc, &list); err != nil {
				return nil, err
			}
			n, err := strconv.Atoi(step)
			if err != nil || n < 0 || n >= len(list) || strconv.Itoa(n) != step {
				return nil, fmt.Errorf("nothing is at %s: a list has no %q", pointer, step)
			}
			doc = list[n]
			continue
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(doc, &members); err != nil {
			return nil, fmt.Errorf("nothing is at %s: %q is asked of what is no object", pointer, step)
		}
		v, ok := members[step]
		if !ok {
			return nil, fmt.Errorf("nothing is at %s: there is no %q", pointer, step)
		}
		doc = v
	}
	return doc, nil
}

// text returns what stands at a place, without quotes if it is a text.
func text(r target.Response, place string) (string, error) {
	if header, ok := strings.CutPrefix(place, "header:"); ok {
		v, ok := r.Header[http.CanonicalHeaderKey(header)]
		if !ok {
			return "", fmt.Errorf("there is no header %s", header)
		}
		return v, nil
	}
	v, err := At(r.Body, place)
	if err != nil {
		return "", err
	}
	var s string
	if json.Unmarshal(v, &s) != nil {
		s = string(v) // a number, as it is written
	}
	return s, nil
}

// Decode implements [target.Protocol].
func (p Protocol) Decode(q target.Question, r target.Response) (*target.Answer, error) {
	if err := wire.Check(r); err != nil {
		return nil, err
	}
	if err := attest.CheckJSON(r.Body); err != nil {
		if bytes.Contains(r.Body, []byte("NaN")) || bytes.Contains(r.Body, []byte("Infinity")) {
			return nil, target.Wrongf("not-finite", "the answer has numbers that are not finite: %.100q", r.Body)
		}
		return nil, target.Wrongf("malformed", "%v: %.100q", err, r.Body)
	}
	if v, err := At(r.Body, p.options.Error); err == nil && string(v) != "null" && string(v) != `""` {
		return nil, target.Wrongf("error-in-200", "the answer of status 200 has at %s: %.200s", p.options.Error, v)
	}
	a := &target.Answer{Model: q.Model}
	for _, c := range []struct{ place, want, class string }{
		{p.options.ID, q.ID, "wrong-id"}, {p.options.Model, q.Model, "wrong-model"}, {p.options.Version, q.Version, "wrong-version"},
	} {
		if c.place == "" {
			continue
		}
		got, err := text(r, c.place)
		if err != nil {
			return nil, target.Wrongf(c.class, "%v", err)
		}
		if got != c.want && (c.want != "" || c.class != "wrong-version") {
			return nil, target.Wrongf(c.class, "%q answered, not %q", got, c.want)
		}
		if c.class == "wrong-version" {
			a.Version = got
		}
	}
	if len(p.options.Outputs) == 0 {
		v, err := At(r.Body, p.options.Value)
		if err != nil {
			return nil, target.Wrongf("missing-output", "%v", err)
		}
		if string(v) == "null" {
			return nil, target.Wrongf("missing-output", "null stands at %s", p.options.Value)
		}
		if a.Value, err = wire.Canonical(v); err != nil {
			return nil, target.Wrongf("malformed", "%v", err)
		}
		return a, nil
	}
	for _, name := range q.Outputs {
		i := slices.IndexFunc(p.options.Outputs, func(t Tensor) bool { return t.Name == name })
		if i < 0 {
			return nil, target.Wrongf("missing-output", "the options do not say where output %s is", name)
		}
		o := p.options.Outputs[i]
		v, err := At(r.Body, o.At)
		if err != nil {
			return nil, target.Wrongf("missing-output", "output %s: %v", name, err)
		}
		t := compare.Tensor{Name: name, Datatype: o.Datatype}
		if t.Bits, _, t.Shape, err = tensor.ReadJSON(o.Datatype, v); err != nil {
			var w *target.Wrong
			if errors.As(err, &w) {
				w.Message = fmt.Sprintf("output %s: %s", name, w.Message)
			}
			return nil, err
		}
		if len(t.Shape) == 1 && len(o.Shape) > 1 {
			t.Shape = reshape(t.Shape[0], o.Shape)
		}
		if !slices.EqualFunc(t.Shape, o.Shape, func(got, want int64) bool { return want == -1 || got == want }) {
			return nil, target.Wrongf("malformed", "output %s has shape %v, and the options say %v", name, t.Shape, o.Shape)
		}
		a.Outputs = append(a.Outputs, t)
	}
	return a, nil
}

// reshape gives n elements in a flat list the declared shape; what does not
// fit stays flat.
func reshape(n int64, declared []int64) []int64 {
	known, open := int64(1), -1
	for i, d := range declared {
		switch {
		case d == -1 && open < 0:
			open = i
		case d <= 0 || d > 1<<31 || known > 1<<31:
			return []int64{n}
		default:
			known *= d
		}
	}
	shape := slices.Clone(declared)
	if open >= 0 {
		shape[open] = n / known
		known *= n / known
	}
	if known != n {
		return []int64{n}
	}
	return shape
}

// Target implements [target.Target] over HTTP.
type Target struct {
	Protocol
	base, address  string
	model, version string
	headers        map[string]string
	client         *wire.Client
}

var _ target.Target = (*Target)(nil)

// New returns the target that an environment document names.
func New(t attest.Target) (*Target, error) {
	p, err := NewProtocol(t)
	if err != nil {
		return nil, err
	}
	tg := &Target{Protocol: p, model: t.Model, version: t.Version, headers: map[string]string{"Content-Type": "application/json", "Accept": "application/json"}}
	if tg.base, err = wire.Base(t.URL); err != nil {
		return nil, err
	}
	q := target.Question{Model: t.Model, Version: t.Version}
	path, err := words(p.options.Path, q, url.PathEscape)
	if err != nil {
		return nil, fmt.Errorf("path: %w", err)
	}
	if strings.Contains(p.options.Path, "${id}") {
		return nil, errors.New("path: ${id} would be sent and not recorded; put it into the body")
	}
	tg.address = tg.base + path
	for k, v := range p.options.Headers {
		if strings.Contains(v, "${id}") || http.CanonicalHeaderKey(k) == "Authorization" {
			return nil, fmt.Errorf("header %s: neither ${id} nor a secret belongs there; see tokenFrom", k)
		}
		if tg.headers[http.CanonicalHeaderKey(k)], err = words(v, q, plain); err != nil {
			return nil, fmt.Errorf("header %s: %w", k, err)
		}
	}
	tg.client, err = wire.NewClient(p.options.TokenFrom)
	return tg, err
}

// Send implements [target.Target].
func (t *Target) Send(ctx context.Context, request []byte) target.Exchange {
	return t.client.Send(ctx, http.MethodPost, t.address, t.headers, request)
}

// Describe implements [target.Target]. A service of this kind describes
// nothing: what is returned are the options, after Ready has answered.
func (t *Target) Describe(ctx context.Context) (target.Description, error) {
	d := target.Description{Model: t.model, Platform: "http-json"}
	ready := t.options.Ready
	if ready == "" {
		// Any answer shows that somebody is there.
		x := t.client.Send(ctx, http.MethodGet, t.base+"/", nil, nil)
		if x.Failure != nil && x.Failure.Class != "truncated" {
			return d, x.Failure
		}
	} else {
		path, err := words(ready, target.Question{Model: t.model, Version: t.version}, url.PathEscape)
		if err != nil {
			return d, fmt.Errorf("ready: %w", err)
		}
		if err := t.client.Get(ctx, t.base+path, nil); err != nil {
			return d, err
		}
	}
	if t.version != "" {
		// Each answer is held against it.
		d.Versions = []string{t.version}
	}
	for _, s := range t.options.Inputs {
		d.Inputs = append(d.Inputs, target.Spec{Name: s.Name, Datatype: s.Datatype, Shape: s.Shape})
	}
	for _, s := range t.options.Outputs {
		d.Outputs = append(d.Outputs, target.Spec{Name: s.Name, Datatype: s.Datatype, Shape: s.Shape})
	}
	return d, nil
}
