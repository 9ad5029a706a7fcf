// Package official holds the fake server of targettest against OpenAI's own
// client: what the one writes, the other reads, and our adapter reads the
// same.
package official

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/assay-dev/assay/conformance/target"
	adapter "github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

const text = "one two three four"

func client(s *targettest.OpenAI) *openai.Client {
	c := openai.NewClient(option.WithBaseURL(s.URL+"/v1"), option.WithAPIKey("none"), option.WithMaxRetries(0))
	return &c
}

// ours asks the same through our adapter.
func ours(t *testing.T, s *targettest.OpenAI, name, request string) *target.Answer {
	t.Helper()
	tg, err := adapter.New(attest.Target{Protocol: name, URL: s.URL + "/v1", Model: "parrot", Version: "parrot-2026-03-01"})
	if err != nil {
		t.Fatal(err)
	}
	q := target.Question{ID: "1", Model: "parrot", Version: "parrot-2026-03-01", Request: json.RawMessage(request)}
	raw, err := tg.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	x := tg.Send(t.Context(), raw)
	if x.Failure != nil {
		t.Fatal(x.Failure)
	}
	a, err := tg.Decode(q, x.Response)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func chat() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: "parrot", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)},
		Logprobs: openai.Bool(true), TopLogprobs: openai.Int(2), MaxTokens: openai.Int(3), N: openai.Int(2),
	}
}

const chatRequest = `{"messages":[{"role":"user","content":"` + text + `"}],"logprobs":true,"top_logprobs":2,"max_tokens":3,"n":2`

func TestChat(t *testing.T) {
	s := targettest.NewOpenAI(t)
	got, err := client(s).Chat.Completions.New(t.Context(), chat())
	if err != nil {
		t.Fatal(err)
	}
	if j := got.JSON; !j.ID.Valid() || !j.Created.Valid() || !j.Model.Valid() || !j.Object.Valid() || !j.Choices.Valid() || !j.Usage.Valid() {
		t.Errorf("a field that every answer has is missing: %s", got.RawJSON())
	}
	want := ours(t, s, adapter.NameChat, chatRequest+`}`)
	same(t, got, want)
}

// same compares what the two clients read.
func same(t *testing.T, got *openai.ChatCompletion, want *target.Answer) {
	t.Helper()
	if len(got.Choices) != len(want.Choices) || got.Model != want.Version || int(got.Usage.PromptTokens) != want.Usage.Prompt || int(got.Usage.CompletionTokens) != want.Usage.Completion {
		t.Fatalf("%s\n%+v", got.RawJSON(), want)
	}
	for i, c := range got.Choices {
		w := want.Choices[i]
		if c.Message.Content != w.Text || c.FinishReason != w.FinishReason || len(c.Logprobs.Content) != len(w.Tokens) || len(c.Message.ToolCalls) != len(w.ToolCalls) {
			t.Fatalf("%+v\n%+v", c, w)
		}
		for k, l := range c.Logprobs.Content {
			if l.Token != w.Tokens[k].Text || l.Logprob != w.Tokens[k].Logprob || len(l.TopLogprobs) != len(w.Tokens[k].Top) || len(l.Bytes) != len(w.Tokens[k].Bytes) {
				t.Errorf("%+v\n%+v", l, w.Tokens[k])
			}
		}
		for k, call := range c.Message.ToolCalls {
			if w := w.ToolCalls[k]; call.ID != w.ID || call.Function.Name != w.Name || call.Function.Arguments != w.Arguments {
				t.Errorf("%+v\n%+v", call, w)
			}
		}
	}
}

func accumulate(t *testing.T, s *targettest.OpenAI, p openai.ChatCompletionNewParams) (*openai.ChatCompletion, error) {
	t.Helper()
	p.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := client(s).Chat.Completions.NewStreaming(t.Context(), p)
	defer stream.Close()
	var acc openai.ChatCompletionAccumulator
	for stream.Next() {
		chunk := stream.Current()
		if j := chunk.JSON; !j.ID.Valid() || !j.Model.Valid() || !j.Object.Valid() || !j.Choices.Valid() {
			t.Errorf("a field that every chunk has is missing: %s", chunk.RawJSON())
		}
		if !acc.AddChunk(chunk) {
			t.Fatalf("a chunk does not belong to those before: %s", chunk.RawJSON())
		}
	}
	return &acc.ChatCompletion, stream.Err()
}

func TestStream(t *testing.T) {
	for _, fault := range []string{"", "trickle"} {
		s := targettest.NewOpenAI(t)
		s.SetMisbehave(func(int) string { return fault })
		got, err := accumulate(t, s, chat())
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, ours(t, s, adapter.NameChat, chatRequest+`,"stream":true}`))
	}
}

func TestTools(t *testing.T) {
	s := targettest.NewOpenAI(t)
	p := openai.ChatCompletionNewParams{
		Model: "parrot", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("the weather in Oslo")},
		Tools: []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: "get_weather"})},
	}
	const request = `{"messages":[{"role":"user","content":"the weather in Oslo"}],"tools":[{"type":"function","function":{"name":"get_weather"}}]`
	got, err := client(s).Chat.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, ours(t, s, adapter.NameChat, request+`}`))
	if len(got.Choices[0].Message.ToolCalls) != 1 {
		t.Errorf("%s", got.RawJSON())
	}
	if got, err = accumulate(t, s, p); err != nil {
		t.Fatal(err)
	}
	same(t, got, ours(t, s, adapter.NameChat, request+`,"stream":true}`))
}

func TestCompletions(t *testing.T) {
	s := targettest.NewOpenAI(t)
	got, err := client(s).Completions.New(t.Context(), openai.CompletionNewParams{
		Model: "parrot", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String(text)}, Logprobs: openai.Int(2), MaxTokens: openai.Int(3),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := ours(t, s, adapter.NameCompletions, `{"prompt":"`+text+`","logprobs":2,"max_tokens":3}`)
	c, w := got.Choices[0], want.Choices[0]
	if c.Text != w.Text || string(c.FinishReason) != w.FinishReason || len(c.Logprobs.Tokens) != len(w.Tokens) || c.Logprobs.TokenLogprobs[1] != w.Tokens[1].Logprob || len(c.Logprobs.TopLogprobs[1]) != len(w.Tokens[1].Top) {
		t.Errorf("%s\n%+v", got.RawJSON(), want)
	}
}

func TestEmbeddings(t *testing.T) {
	s := targettest.NewOpenAI(t)
	got, err := client(s).Embeddings.New(t.Context(), openai.EmbeddingNewParams{
		Model: "parrot", Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"ab", "b c"}}, EncodingFormat: openai.EmbeddingNewParamsEncodingFormatFloat, Dimensions: openai.Int(4),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := ours(t, s, adapter.NameEmbeddings, `{"input":["ab","b c"],"dimensions":4}`)
	values, err := want.Outputs[0].Values()
	if err != nil || len(got.Data) != 2 || !got.Data[0].JSON.Embedding.Valid() {
		t.Fatalf("%v: %s", err, got.RawJSON())
	}
	for i, v := range append(got.Data[0].Embedding, got.Data[1].Embedding...) {
		if float32(v) != float32(values[i]) {
			t.Errorf("number %d: %v and %v", i, v, values[i])
		}
	}
}

func TestModels(t *testing.T) {
	page, err := client(targettest.NewOpenAI(t)).Models.List(t.Context())
	if err != nil || len(page.Data) != 2 || page.Data[0].ID != "parrot" || !page.Data[0].JSON.Created.Valid() {
		t.Errorf("%+v, %v", page, err)
	}
}

// What the fake does wrong, the official client takes as the server's doing.
func TestMisbehaviour(t *testing.T) {
	for fault, check := range map[string]func(error) bool{
		"http-429":        func(err error) bool { return status(err) == http.StatusTooManyRequests },
		"http-500":        func(err error) bool { return status(err) == http.StatusInternalServerError },
		"error-in-stream": func(err error) bool { return err != nil },
		"nan":             func(err error) bool { return err != nil },
		"close":           func(err error) bool { return err != nil && status(err) == 0 },
	} {
		s := targettest.NewOpenAI(t)
		s.SetMisbehave(func(int) string { return fault })
		if _, err := accumulate(t, s, chat()); !check(err) {
			t.Errorf("%s: %v", fault, err)
		}
	}
	s := targettest.NewOpenAI(t)
	p := chat()
	p.Temperature = openai.Float(3)
	var e *openai.Error
	if _, err := client(s).Chat.Completions.New(context.Background(), p); !errors.As(err, &e) || e.StatusCode != 400 || e.Param != "temperature" {
		t.Errorf("a temperature of 3: %v", err)
	}
	p = chat()
	p.Model = "cockatoo"
	if _, err := client(s).Chat.Completions.New(context.Background(), p); status(err) != 404 {
		t.Errorf("another model: %v", err)
	}
}

func status(err error) int {
	var e *openai.Error
	if errors.As(err, &e) {
		return e.StatusCode
	}
	return 0
}
