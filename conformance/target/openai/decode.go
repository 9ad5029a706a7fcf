package openai

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/wire"
	"github.com/assay-dev/assay/verify/attest"
)

// asked is what of a question's parameters an answer is held against.
type asked struct {
	Stream        bool `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	N                   int             `json:"n"`
	MaxTokens           *int            `json:"max_tokens"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	Stop                json.RawMessage `json:"stop"`
	Logprobs            json.RawMessage `json:"logprobs"` // a boolean in chats, a number in completions
	TopLogprobs         int             `json:"top_logprobs"`
	Echo                bool            `json:"echo"`
	ToolChoice          json.RawMessage `json:"tool_choice"`
	ResponseFormat      struct {
		Type string `json:"type"`
	} `json:"response_format"`
	EncodingFormat string          `json:"encoding_format"`
	Dimensions     int             `json:"dimensions"`
	Input          json.RawMessage `json:"input"`

	tokens bool // log probabilities are to come
	top    int
	stops  []string
}

func (p Protocol) asked(q target.Question) (a asked, err error) {
	raw, err := p.Encode(q)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return a, fmt.Errorf("question %s: %w", q.ID, err)
	}
	switch s := string(a.Logprobs); {
	case s == "true":
		a.tokens, a.top = true, a.TopLogprobs
	case s != "" && s != "false" && s != "null":
		a.tokens = true
		a.top, err = strconv.Atoi(s)
	}
	if len(a.Stop) > 0 && a.Stop[0] == '"' {
		var s string
		err = json.Unmarshal(a.Stop, &s)
		a.stops = []string{s}
	} else if len(a.Stop) > 0 {
		err = json.Unmarshal(a.Stop, &a.stops)
	}
	if a.MaxTokens == nil {
		a.MaxTokens = a.MaxCompletionTokens
	}
	return a, err
}

// A reply is a whole answer, or one chunk of a stream.
type reply struct {
	ID                string          `json:"id"`
	Model             string          `json:"model"`
	SystemFingerprint string          `json:"system_fingerprint"`
	Error             json.RawMessage `json:"error"`
	Choices           []choice        `json:"choices"`
	Data              []struct {
		Index     int             `json:"index"`
		Embedding json.RawMessage `json:"embedding"`
	} `json:"data"`
	Usage *struct {
		Prompt     *int `json:"prompt_tokens"`
		Completion int  `json:"completion_tokens"`
		Total      int  `json:"total_tokens"`
		Details    struct {
			Cached int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
	Settings map[string]json.RawMessage `json:"generation_settings"` // llama.cpp
}

type choice struct {
	Index        int       `json:"index"`
	Message      *message  `json:"message"` // of a chat
	Delta        *message  `json:"delta"`   // of a chat, in a stream
	Text         *string   `json:"text"`    // of a completion
	FinishReason *string   `json:"finish_reason"`
	Logprobs     *logprobs `json:"logprobs"`
}

type message struct {
	Content   *string    `json:"content"`
	Refusal   string     `json:"refusal"`
	ToolCalls []toolCall `json:"tool_calls"`
}

type toolCall struct {
	Index    *int   `json:"index"` // in a stream
	ID       string `json:"id"`
	Function struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
	} `json:"function"`
}

// logprobs are in the shape of chats (content) or of completions (tokens).
type logprobs struct {
	Content []struct {
		alternative
		Bytes []int         `json:"bytes"`
		Top   []alternative `json:"top_logprobs"`
	} `json:"content"`

	Tokens        []string              `json:"tokens"`
	TokenLogprobs []*float64            `json:"token_logprobs"`
	TopLogprobs   []map[string]*float64 `json:"top_logprobs"`
}

type alternative struct {
	Token   string   `json:"token"`
	Logprob *float64 `json:"logprob"`
}

// Decode implements [target.Protocol].
func (p Protocol) Decode(q target.Question, r target.Response) (*target.Answer, error) {
	want, err := p.asked(q)
	if err != nil {
		return nil, err
	}
	if err := wire.Check(r); err != nil {
		return nil, err
	}
	streamed := strings.HasPrefix(r.Header["Content-Type"], "text/event-stream")
	if p.name != NameEmbeddings && streamed != want.Stream {
		return nil, target.Wrongf("ignored", "stream is %v, and the answer is of type %q", want.Stream, r.Header["Content-Type"])
	}
	a := &target.Answer{}
	switch {
	case p.name == NameEmbeddings:
		var whole reply
		if err := read(r.Body, &whole); err != nil {
			return nil, err
		}
		if err := identify(a, q, whole); err != nil {
			return nil, err
		}
		if err := embeddings(a, q, want, whole); err != nil {
			return nil, err
		}
		return a, nil
	case want.Stream:
		err = p.stream(a, q, want, r)
	default:
		var whole reply
		if err := read(r.Body, &whole); err != nil {
			return nil, err
		}
		if err := identify(a, q, whole); err != nil {
			return nil, err
		}
		err = p.collect(a, want, whole.Choices, false)
	}
	if err != nil {
		return nil, err
	}
	if err := heeded(a, want); err != nil {
		return nil, err
	}
	return a, nil
}

// read parses one JSON document of an answer, strictly.
func read(raw []byte, out *reply) error {
	if err := attest.CheckJSON(raw); err != nil {
		if bytes.Contains(raw, []byte("NaN")) || bytes.Contains(raw, []byte("Infinity")) {
			return target.Wrongf("not-finite", "the answer has numbers that are not finite: %.100q", raw)
		}
		return target.Wrongf("malformed", "%v: %.100q", err, raw)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return target.Wrongf("malformed", "%v: %.100q", err, raw)
	}
	if out.Error != nil && string(out.Error) != "null" {
		return target.Wrongf("error-in-200", "the answer of status 200 is an error: %.200s", out.Error)
	}
	return nil
}

// identify checks who answered, and takes over what a reply says of itself.
func identify(a *target.Answer, q target.Question, r reply) error {
	switch {
	case r.Model == "":
		return target.Wrongf("wrong-model", "the answer does not say which model gave it")
	case q.Version != "" && r.Model != q.Version:
		return target.Wrongf("wrong-version", "%q answered, not %q", r.Model, q.Version)
	case q.Version == "" && r.Model != q.Model:
		return target.Wrongf("wrong-model", "%q answered, not %q; if that is its full name, give it as the version", r.Model, q.Model)
	}
	a.Model, a.Version = q.Model, r.Model
	declare := func(k, v string) {
		if v != "" {
			if a.Declared == nil {
				a.Declared = map[string]string{}
			}
			a.Declared[k] = v
		}
	}
	declare("system_fingerprint", r.SystemFingerprint)
	if u := r.Usage; u != nil {
		if u.Prompt == nil || *u.Prompt < 0 || u.Completion < 0 || u.Total != *u.Prompt+u.Completion {
			return target.Wrongf("malformed", "usage does not add up: %+v", *u)
		}
		a.Usage = &target.Usage{Prompt: *u.Prompt, Completion: u.Completion, Total: u.Total}
		if u.Details.Cached > 0 {
			declare("cached_tokens", strconv.Itoa(u.Details.Cached))
		}
	}
	for k, v := range r.Settings {
		if a.Applied == nil {
			a.Applied = map[string]string{}
		}
		a.Applied[k] = string(v)
	}
	return nil
}

// collect adds choices of a whole answer, or of a chunk, to an answer.
func (p Protocol) collect(a *target.Answer, want asked, list []choice, chunk bool) error {
	for _, c := range list {
		if c.Index < 0 || c.Index >= max(want.N, 1) {
			return target.Wrongf("extra-output", "choice %d, and n is %d", c.Index, want.N)
		}
		for len(a.Choices) <= c.Index {
			a.Choices = append(a.Choices, target.Choice{})
		}
		to := &a.Choices[c.Index]
		if to.FinishReason != "" && (c.Text != nil || c.Message != nil || c.FinishReason != nil || c.Delta != nil && (c.Delta.Content != nil && *c.Delta.Content != "" || c.Delta.ToolCalls != nil)) {
			return target.Wrongf("malformed", "choice %d goes on after its end, or came twice", c.Index)
		}
		m := c.Message
		if chunk {
			m = c.Delta
		}
		switch {
		case p.name == NameCompletions && c.Text != nil:
			to.Text += *c.Text
		case p.name == NameCompletions || m == nil:
			return target.Wrongf("malformed", "choice %d has no content", c.Index)
		default:
			if m.Content != nil {
				to.Text += *m.Content
			}
			to.Refusal += m.Refusal
			for i, call := range m.ToolCalls {
				if err := addCall(to, i, call, chunk); err != nil {
					return err
				}
			}
		}
		if c.FinishReason != nil {
			to.FinishReason = *c.FinishReason
		}
		if c.Logprobs != nil {
			if err := addTokens(to, want, c.Logprobs); err != nil {
				return err
			}
		}
	}
	return nil
}

// addCall adds a tool call or, in a stream, a piece of one.
func addCall(to *target.Choice, i int, call toolCall, chunk bool) error {
	if chunk {
		if call.Index == nil {
			return target.Wrongf("malformed", "a piece of a tool call does not say of which")
		}
		i = *call.Index
	}
	if i < 0 || i > len(to.ToolCalls) {
		return target.Wrongf("malformed", "tool call %d comes after %d", i, len(to.ToolCalls))
	}
	if i == len(to.ToolCalls) {
		to.ToolCalls = append(to.ToolCalls, target.ToolCall{})
	}
	t := &to.ToolCalls[i]
	t.ID += call.ID
	t.Name += call.Function.Name
	if call.Function.Arguments == nil {
		return nil
	}
	// "A string containing JSON"; some servers send the object itself.
	var s string
	if err := json.Unmarshal(call.Function.Arguments, &s); err != nil {
		return target.Wrongf("malformed", "the arguments of %s are no string: %.100s", call.Function.Name, call.Function.Arguments)
	}
	t.Arguments += s
	return nil
}

func addTokens(to *target.Choice, want asked, l *logprobs) error {
	number := func(v *float64) (float64, error) {
		switch {
		case v == nil:
			return 0, target.Wrongf("not-finite", "a log probability is null")
		case *v > 1e-3 || math.IsNaN(*v):
			return 0, target.Wrongf("malformed", "a log probability is %v", *v)
		}
		return *v, nil
	}
	order := func(list []target.Alternative) {
		slices.SortStableFunc(list, func(x, y target.Alternative) int {
			return cmp.Or(cmp.Compare(y.Logprob, x.Logprob), strings.Compare(x.Text, y.Text))
		})
	}
	for _, c := range l.Content {
		v, err := number(c.Logprob)
		if err != nil {
			return err
		}
		t := target.Token{Text: c.Token, Logprob: v}
		for _, b := range c.Bytes {
			if b < 0 || b > 255 {
				return target.Wrongf("malformed", "token %q has a byte of %d", c.Token, b)
			}
			t.Bytes = append(t.Bytes, byte(b))
		}
		for _, x := range c.Top {
			if v, err = number(x.Logprob); err != nil {
				return err
			}
			t.Top = append(t.Top, target.Alternative{Text: x.Token, Logprob: v})
		}
		order(t.Top)
		to.Tokens = append(to.Tokens, t)
	}
	if len(l.TokenLogprobs) != len(l.Tokens) || l.TopLogprobs != nil && len(l.TopLogprobs) != len(l.Tokens) {
		return target.Wrongf("malformed", "%d tokens, %d log probabilities and %d lists of others", len(l.Tokens), len(l.TokenLogprobs), len(l.TopLogprobs))
	}
	for i, text := range l.Tokens {
		t := target.Token{Text: text}
		// With echo the first token of the prompt has none.
		if l.TokenLogprobs[i] != nil || !want.Echo {
			v, err := number(l.TokenLogprobs[i])
			if err != nil {
				return err
			}
			t.Logprob = v
		}
		if l.TopLogprobs != nil {
			for text, x := range l.TopLogprobs[i] {
				v, err := number(x)
				if err != nil {
					return err
				}
				t.Top = append(t.Top, target.Alternative{Text: text, Logprob: v})
			}
			order(t.Top)
		}
		to.Tokens = append(to.Tokens, t)
	}
	return nil
}

// stream reads server-sent events: "data: {…}", and at the end "data: [DONE]".
func (p Protocol) stream(a *target.Answer, q target.Question, want asked, r target.Response) error {
	done, id := false, ""
	arrived := 0 // index into r.Arrivals
	err := events(r.Body, func(name, data string, end int) error {
		if done {
			return target.Wrongf("malformed", "the stream goes on after [DONE]: %.100q", data)
		}
		if data == "[DONE]" {
			done = true
			return nil
		}
		if name == "error" {
			return target.Wrongf("error-in-200", "the stream of status 200 ends in an error: %.200s", data)
		}
		var chunk reply
		if err := read([]byte(data), &chunk); err != nil {
			return err
		}
		// Who answers must not change in the midst of it.
		if err := identify(a, q, chunk); err != nil {
			return err
		}
		if id != "" && chunk.ID != id {
			return target.Wrongf("wrong-id", "the stream is of answer %q and then of %q", id, chunk.ID)
		}
		id = chunk.ID
		if err := p.collect(a, want, chunk.Choices, true); err != nil {
			return err
		}
		if !slices.ContainsFunc(chunk.Choices, choice.content) {
			return nil
		}
		for arrived < len(r.Arrivals) && r.Arrivals[arrived].Bytes < end {
			arrived++
		}
		if arrived < len(r.Arrivals) {
			at := r.Arrivals[arrived].After
			if a.Timing.Pieces == 0 {
				a.Timing.First = at
			}
			a.Timing.Last = at
			a.Timing.Pieces++
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case !done:
		return target.Wrongf("truncated", "the stream has no [DONE] at its end")
	case want.StreamOptions.IncludeUsage && a.Usage == nil:
		return target.Wrongf("ignored", "stream_options.include_usage is true, and the stream has no usage")
	}
	return nil
}

// content says whether a choice of a chunk has a piece of the answer in it.
func (c choice) content() bool {
	if c.Text != nil {
		return *c.Text != ""
	}
	d := c.Delta
	return d != nil && (d.Content != nil && *d.Content != "" || d.Refusal != "" || len(d.ToolCalls) > 0)
}

// events calls fn for each event, with the offset behind it: "lines must be
// separated by either a U+000D U+000A pair, a single U+000A, or a single
// U+000D; … dispatch the event on a blank line" (HTML, server-sent events). An
// event without its blank line is not dispatched.
func events(body []byte, fn func(name, data string, end int) error) error {
	if !utf8.Valid(body) {
		return target.Wrongf("malformed", "the stream is no UTF-8")
	}
	name, data, has := "", []string(nil), false
	for at := 0; at < len(body); {
		n := bytes.IndexAny(body[at:], "\r\n")
		if n < 0 {
			return target.Wrongf("truncated", "the stream ends within a line: %.100q", body[at:])
		}
		line := string(body[at : at+n])
		end := at + n + 1
		if body[at+n] == '\r' && end < len(body) && body[end] == '\n' {
			end++
		}
		at = end
		if line == "" {
			if has {
				if err := fn(name, strings.Join(data, "\n"), end); err != nil {
					return err
				}
			}
			name, data, has = "", nil, false
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "data":
			data, has = append(data, value), true
		case "event":
			name = value
		case "", "id", "retry": // a comment, or not about the answer
		default:
			return target.Wrongf("malformed", "a line of the stream is no field of an event: %.100q", line)
		}
	}
	if has {
		return target.Wrongf("truncated", "the stream ends within an event")
	}
	return nil
}

// heeded looks for parameters that the answer shows were not heeded.
func heeded(a *target.Answer, want asked) error {
	ignored := func(format string, x ...any) error { return target.Wrongf("ignored", format, x...) }
	if n := max(want.N, 1); len(a.Choices) != n {
		return ignored("n is %d, and %d choices came", n, len(a.Choices))
	}
	if a.Usage != nil && want.MaxTokens != nil && a.Usage.Completion > *want.MaxTokens*len(a.Choices) {
		return ignored("max_tokens is %d, and %d tokens came", *want.MaxTokens, a.Usage.Completion)
	}
	for i, c := range a.Choices {
		if c.FinishReason == "" {
			return target.Wrongf("truncated", "choice %d does not say why it ended", i)
		}
		if want.MaxTokens != nil && len(c.Tokens) > *want.MaxTokens && !want.Echo {
			return ignored("max_tokens is %d, and %d log probabilities came", *want.MaxTokens, len(c.Tokens))
		}
		if want.tokens && len(c.Tokens) == 0 && c.Text != "" {
			return ignored("logprobs were asked for, and none came")
		}
		if !want.tokens && len(c.Tokens) > 0 {
			return ignored("logprobs were not asked for, and %d came", len(c.Tokens))
		}
		for _, t := range c.Tokens {
			if want.top > 0 && len(t.Top) == 0 && !want.Echo {
				return ignored("top_logprobs is %d, and token %q has none", want.top, t.Text)
			}
		}
		for _, s := range want.stops {
			if s != "" && strings.Contains(c.Text, s) && !want.Echo {
				return ignored("the text goes on after the stop sequence %q", s)
			}
		}
		switch string(want.ToolChoice) {
		case "", `"auto"`:
		case `"none"`:
			if len(c.ToolCalls) > 0 {
				return ignored("tool_choice is none, and %s is called", c.ToolCalls[0].Name)
			}
		default:
			if len(c.ToolCalls) == 0 {
				return ignored("tool_choice is %s, and no tool is called", want.ToolChoice)
			}
		}
		if t := want.ResponseFormat.Type; (t == "json_object" || t == "json_schema") && c.FinishReason == "stop" && !json.Valid([]byte(c.Text)) {
			return ignored("response_format is %s, and the text is no JSON: %.100q", t, c.Text)
		}
	}
	return nil
}

// embeddings reads one tensor with a row for each input.
func embeddings(a *target.Answer, q target.Question, want asked, r reply) error {
	inputs := 1
	if len(want.Input) > 0 && want.Input[0] == '[' {
		var list []json.RawMessage
		if err := json.Unmarshal(want.Input, &list); err != nil {
			return err
		}
		// A list of numbers is one text, as tokens.
		if len(list) > 0 && (list[0][0] == '"' || list[0][0] == '[') {
			inputs = len(list)
		}
	}
	rows := make([][]byte, inputs)
	for _, d := range r.Data {
		if d.Index < 0 || d.Index >= inputs || rows[d.Index] != nil {
			return target.Wrongf("extra-output", "an embedding of input %d, for %d inputs, or it came twice", d.Index, inputs)
		}
		row, err := embedding(d.Embedding, want.EncodingFormat)
		if err != nil {
			return err
		}
		rows[d.Index] = row
	}
	t := compare.Tensor{Name: "embedding", Datatype: "FP32"}
	if len(q.Outputs) == 1 {
		t.Name = q.Outputs[0]
	}
	width := len(rows[0])
	for i, row := range rows {
		switch {
		case row == nil:
			return target.Wrongf("missing-output", "input %d has no embedding", i)
		case len(row) != width:
			return target.Wrongf("malformed", "embeddings of %d and of %d numbers", width/4, len(row)/4)
		}
		t.Bits = append(t.Bits, row...)
	}
	if want.Dimensions > 0 && width/4 != want.Dimensions {
		return target.Wrongf("ignored", "dimensions is %d, and the embedding has %d", want.Dimensions, width/4)
	}
	t.Shape = []int64{int64(inputs), int64(width / 4)}
	a.Outputs = []compare.Tensor{t}
	return nil
}

// embedding reads numbers, or the base64 of little-endian FP32.
func embedding(raw json.RawMessage, format string) ([]byte, error) {
	if len(raw) > 0 && (raw[0] == '"') != (format == "base64") {
		return nil, target.Wrongf("ignored", "encoding_format is %q, and the embedding is %.40s", format, raw)
	}
	if format == "base64" {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, target.Wrongf("malformed", "%v", err)
		}
		bits, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(bits)%4 != 0 || len(bits) == 0 {
			return nil, target.Wrongf("malformed", "an embedding of %d bytes (%v)", len(bits), err)
		}
		return bits, nil
	}
	var list []json.Number
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 {
		return nil, target.Wrongf("malformed", "an embedding is no list of numbers: %.40s", raw)
	}
	var bits []byte
	for _, n := range list {
		v, err := strconv.ParseFloat(string(n), 32)
		if err != nil {
			return nil, target.Wrongf("not-finite", "%q in an embedding is no FP32", string(n))
		}
		bits = binary.LittleEndian.AppendUint32(bits, math.Float32bits(float32(v)))
	}
	return bits, nil
}
