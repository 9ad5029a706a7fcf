package openai

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/wire"
	"github.com/assay-dev/assay/verify/attest"
)

// Target implements [target.Target] and [target.Prober] over HTTP.
type Target struct {
	Protocol
	base   string // …/v1
	model  string
	client *wire.Client
}

var (
	_ target.Target = (*Target)(nil)
	_ target.Prober = (*Target)(nil)
)

// New returns the target that an environment document names. Its URL is what
// OpenAI's own clients call the base URL: it usually ends in /v1. Its version,
// if there is one, is the name that answers give the model.
func New(t attest.Target) (*Target, error) {
	p, err := NewProtocol(t)
	if err != nil {
		return nil, err
	}
	tg := &Target{Protocol: p, model: t.Model}
	if tg.base, err = wire.Base(t.URL); err != nil {
		return nil, err
	}
	tg.client, err = wire.NewClient(p.options.TokenFrom)
	return tg, err
}

// paths are where the protocols are spoken.
var paths = map[string]string{NameChat: "/chat/completions", NameCompletions: "/completions", NameEmbeddings: "/embeddings"}

// Send implements [target.Target].
func (t *Target) Send(ctx context.Context, request []byte) target.Exchange {
	return t.client.Send(ctx, http.MethodPost, t.base+paths[t.name], map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
	}, request)
}

// Describe implements [target.Target]: the model must be among those that the
// server lists. What vLLM and llama.cpp say of themselves elsewhere is added.
func (t *Target) Describe(ctx context.Context) (target.Description, error) {
	d := target.Description{Model: t.model, Parameters: map[string]string{}}
	var list struct {
		Data []struct {
			ID          string                     `json:"id"`
			OwnedBy     string                     `json:"owned_by"`
			MaxModelLen json.Number                `json:"max_model_len"` // vLLM
			Root        string                     `json:"root"`          // vLLM: what was loaded
			Meta        map[string]json.RawMessage `json:"meta"`          // llama.cpp
		} `json:"data"`
	}
	if err := t.client.Get(ctx, t.base+"/models", &list); err != nil {
		return d, err
	}
	found := false
	for _, m := range list.Data {
		d.Versions = append(d.Versions, m.ID)
		if m.ID != t.model {
			continue
		}
		found = true
		d.Platform = m.OwnedBy
		d.Parameters["owned_by"] = m.OwnedBy
		d.Parameters["max_model_len"], d.Parameters["root"] = string(m.MaxModelLen), m.Root
		for k, v := range m.Meta {
			d.Parameters["meta."+k] = string(v)
		}
	}
	if !found {
		return d, fmt.Errorf("the server does not have model %s; it lists %s", t.model, strings.Join(d.Versions, ", "))
	}
	root := strings.TrimSuffix(t.base, "/v1")
	var version struct {
		Version string `json:"version"`
	}
	if err := t.optional(ctx, root+"/version", &version); err != nil {
		return d, err
	}
	d.ServerVersion = version.Version
	var props struct {
		BuildInfo    string `json:"build_info"`
		ModelPath    string `json:"model_path"`
		ChatTemplate string `json:"chat_template"`
		Slots        int    `json:"total_slots"`
		Defaults     struct {
			Context int `json:"n_ctx"`
		} `json:"default_generation_settings"`
	}
	if err := t.optional(ctx, root+"/props", &props); err != nil {
		return d, err
	}
	if props.BuildInfo != "" {
		d.ServerVersion = props.BuildInfo
	}
	if props.ChatTemplate != "" {
		sum := sha256.Sum256([]byte(props.ChatTemplate))
		d.Parameters["chat_template"] = "sha256:" + hex.EncodeToString(sum[:])
	}
	d.Parameters["model_path"] = props.ModelPath
	for k, v := range map[string]int{"slots": props.Slots, "context": props.Defaults.Context} {
		if v > 0 {
			d.Parameters[k] = strconv.Itoa(v)
		}
	}
	for k, v := range d.Parameters {
		if v == "" {
			delete(d.Parameters, k)
		}
	}
	return d, nil
}

// optional gets a document that a server need not have.
func (t *Target) optional(ctx context.Context, address string, out any) error {
	err := t.client.Get(ctx, address, out)
	var status *wire.StatusError
	if errors.As(err, &status) {
		return nil
	}
	return err
}

// ask sends q with other parameters.
func (t *Target) ask(ctx context.Context, q target.Question, parameters map[string]any) (*target.Answer, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(q.Request, &all); err != nil {
		return nil, err
	}
	for k, v := range parameters {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		all[k] = raw
	}
	request, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	q.Request = request
	raw, err := t.Encode(q)
	if err != nil {
		return nil, err
	}
	x := t.Send(ctx, raw)
	if x.Failure != nil {
		return nil, x.Failure
	}
	return t.Decode(q, x.Response)
}

// Probe implements [target.Prober].
func (t *Target) Probe(ctx context.Context, q target.Question) []target.Check {
	checks := []target.Check{t.probeLength(ctx, q)}
	if t.name != NameEmbeddings {
		checks = append(checks, t.probeStream(ctx, q))
		if c, said := t.probeApplied(ctx, q); said {
			checks = append(checks, c)
		}
	}
	return checks
}

// probeApplied holds what the server says of the parameters that it used against
// those that it was sent. Few servers say: for the others there is no check.
func (t *Target) probeApplied(ctx context.Context, q target.Question) (c target.Check, said bool) {
	c.Name = "applies the parameters that it is sent"
	a, err := t.ask(ctx, q, map[string]any{"stream": false})
	if err != nil || len(a.Applied) == 0 {
		return c, false // what is wrong with answers the cases show
	}
	sent, err := t.parameters(q)
	if err != nil {
		c.Detail = err.Error()
		return c, true
	}
	held := 0
	for _, name := range slices.Sorted(maps.Keys(a.Applied)) {
		want, ok := sent[name]
		if !ok || name == "stream" {
			continue
		}
		same, comparable := sameParameter(want, json.RawMessage(a.Applied[name]))
		if !comparable {
			continue
		}
		if held++; !same {
			c.Detail = fmt.Sprintf("%s is %s, and it says that it used %s", name, want, a.Applied[name])
			return c, true
		}
	}
	c.Passed, c.Detail = true, fmt.Sprintf("it says which it used, and of %d it was sent the same", held)
	return c, true
}

// sameParameter compares two numbers, truths or strings. Servers keep numbers as
// float32.
func sameParameter(want, got json.RawMessage) (same, comparable bool) {
	var w, g any
	if json.Unmarshal(want, &w) != nil || json.Unmarshal(got, &g) != nil {
		return false, false
	}
	switch w := w.(type) {
	case float64:
		g, ok := g.(float64)
		return ok && float32(w) == float32(g), ok
	case bool:
		g, ok := g.(bool)
		return w == g, ok
	case string:
		g, ok := g.(string)
		return w == g, ok
	}
	return false, false
}

// probeLength asks longer and longer questions. A server that cuts them short
// without a word (Ollama by default) counts fewer tokens than it was sent; one
// that refuses them is honest.
func (t *Target) probeLength(ctx context.Context, q target.Question) target.Check {
	c := target.Check{Name: "does not cut long questions"}
	count := func(times int) (n int, refused bool, err error) {
		parameters, err := t.longer(q, times)
		if err != nil {
			return 0, false, err
		}
		a, err := t.ask(ctx, q, parameters)
		var wrong *target.Wrong
		switch {
		case errors.As(err, &wrong) && wrong.Class == "http" && strings.HasPrefix(wrong.Message, "status 4") && !strings.HasPrefix(wrong.Message, "status 429"):
			return 0, true, nil
		case err != nil:
			return 0, false, err
		case a.Usage == nil:
			return 0, false, errors.New("it does not say how many tokens a question has")
		}
		return a.Usage.Prompt, false, nil
	}
	first, refused, err := count(1)
	if err != nil || refused {
		c.Detail = fmt.Sprintf("the question itself: refused %v (%v)", refused, err)
		return c
	}
	second, refused, err := count(2)
	each := second - first
	for times := 4; err == nil && !refused && times <= 64; times *= 4 {
		var n int
		if n, refused, err = count(times); err != nil || refused {
			break
		}
		// A tokenizer may join the ends: a tenth is allowed for it.
		if least := first + (times-1)*each*9/10; n < least || each <= 0 {
			c.Detail = fmt.Sprintf("a question has %d tokens, twice it %d, and %d times it only %d", first, second, times, n)
			return c
		}
	}
	switch {
	case err != nil:
		c.Detail = err.Error()
	case refused:
		c.Passed, c.Detail = true, "it refuses what is too long"
	default:
		c.Passed, c.Detail = true, fmt.Sprintf("it counts %d tokens in a question and %d more for each repetition, up to 64", first, each)
	}
	return c
}

// longer repeats the text of a question.
func (t *Target) longer(q target.Question, times int) (map[string]any, error) {
	var r struct {
		Messages []map[string]any `json:"messages"`
		Prompt   any              `json:"prompt"`
		Input    any              `json:"input"`
	}
	if err := json.Unmarshal(q.Request, &r); err != nil {
		return nil, err
	}
	again := func(v any) (string, error) {
		s, ok := v.(string)
		if !ok {
			return "", errors.New("the question's text is no string, and is not repeated")
		}
		return strings.Repeat(s+" ", times), nil
	}
	out := map[string]any{}
	var err error
	switch t.name {
	case NameChat:
		out["max_tokens"] = 1
		messages := slices.Clone(r.Messages)
		for i := len(messages) - 1; i >= 0; i-- {
			if messages[i]["role"] != "user" {
				continue
			}
			m := map[string]any{"role": "user"}
			if m["content"], err = again(messages[i]["content"]); err != nil {
				return nil, err
			}
			messages[i] = m
			break
		}
		out["messages"] = messages
		// Cut off after a token it can keep no other promise.
		out["tool_choice"], out["response_format"] = "none", map[string]any{"type": "text"}
		if _, ok := has(q.Request, "tools"); !ok {
			delete(out, "tool_choice")
		}
	case NameCompletions:
		out["max_tokens"] = 1
		out["prompt"], err = again(r.Prompt)
	default:
		if list, ok := r.Input.([]any); ok && len(list) > 0 {
			r.Input = list[0]
		}
		out["input"], err = again(r.Input)
	}
	return out, err
}

func has(request json.RawMessage, name string) (json.RawMessage, bool) {
	var all map[string]json.RawMessage
	if json.Unmarshal(request, &all) != nil {
		return nil, false
	}
	v, ok := all[name]
	return v, ok
}

// probeStream asks the same question whole and streamed, at temperature 0.
func (t *Target) probeStream(ctx context.Context, q target.Question) target.Check {
	c := target.Check{Name: "streams what it answers whole"}
	whole, err1 := t.ask(ctx, q, map[string]any{"stream": false, "temperature": 0})
	streamed, err2 := t.ask(ctx, q, map[string]any{"stream": true, "temperature": 0})
	if err := errors.Join(err1, err2); err != nil {
		c.Detail = err.Error()
		return c
	}
	for i := range whole.Choices {
		a, b := whole.Choices[i], streamed.Choices[i]
		same := a.Text == b.Text && a.FinishReason == b.FinishReason && len(a.Tokens) == len(b.Tokens) &&
			slices.EqualFunc(a.ToolCalls, b.ToolCalls, func(x, y target.ToolCall) bool { return x.Name == y.Name && x.Arguments == y.Arguments })
		if !same {
			c.Detail = fmt.Sprintf("whole it is %.60q (%s), streamed %.60q (%s)", a.Text, a.FinishReason, b.Text, b.FinishReason)
			return c
		}
	}
	if whole.Usage != nil && streamed.Usage != nil && *whole.Usage != *streamed.Usage {
		c.Detail = fmt.Sprintf("whole it counts %+v, streamed %+v", *whole.Usage, *streamed.Usage)
		return c
	}
	c.Passed = true
	c.Detail = fmt.Sprintf("%d choices, the same text, tool calls and counts", len(whole.Choices))
	return c
}
