// Package wire carries questions over HTTP: once, within bounds, and with
// every byte of the answer kept. It is what the adapters that speak HTTP have
// in common.
package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// MaxResponse bounds an answer, in bytes.
const MaxResponse = 64 << 20

// evidence are the response headers that are kept: what decoding needs, when
// to come again, who answered, and whether it was a store.
var evidence = []string{
	"Content-Type", "Inference-Header-Content-Length", "Retry-After", "Server", "Age", "X-Cache", "Cf-Cache-Status",
	"X-Request-Id", "Openai-Version", "Openai-Processing-Ms", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests",
	"Azureml-Model-Deployment", "X-Amzn-Invoked-Production-Variant", "X-Vertex-Ai-Deployed-Model-Id",
}

var kept = func() map[string]bool {
	m := map[string]bool{}
	for _, name := range evidence {
		m[name] = true
	}
	return m
}()

// Evidence lists the response headers that are kept, by canonical name. Beside a
// Retry-After, Date is kept as well.
func Evidence() []string { return slices.Clone(evidence) }

// A Client sends requests to one environment.
type Client struct {
	http  *http.Client
	token string
}

// NewClient returns a client. tokenFrom, unless empty, names the environment
// variable with the bearer token: no document holds a secret.
func NewClient(tokenFrom string) (*Client, error) {
	c := &Client{http: &http.Client{
		// A redirect would be another server than the one that is measured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:       http.ProxyFromEnvironment,
			DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			// The bytes that are kept are those that were sent.
			DisableCompression:  true,
			MaxIdleConnsPerHost: 64,
			ForceAttemptHTTP2:   true,
		},
	}}
	if tokenFrom != "" {
		if c.token = os.Getenv(tokenFrom); c.token == "" {
			return nil, fmt.Errorf("the environment variable %s, which has the bearer token of this target, is empty; set it", tokenFrom)
		}
	}
	return c, nil
}

// Base checks the address of an environment and returns it without a slash at
// its end.
func Base(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("target url %q: write http://HOST:PORT", address)
	}
	if u.User != nil {
		return "", fmt.Errorf("target url: it has a password in it, which would be published; name the variable with the token in the options")
	}
	return strings.TrimSuffix(address, "/"), nil
}

// Send makes one request. What went out is never sent again: a connection that
// breaks is a failure, and recorded as one.
func (c *Client) Send(ctx context.Context, method, address string, header map[string]string, body []byte) target.Exchange {
	x := target.Exchange{Sent: time.Now().UTC()}
	fail := func(class string, err error) target.Exchange {
		x.Received = time.Now().UTC()
		var n net.Error
		if ctx.Err() != nil || errors.As(err, &n) && n.Timeout() {
			class = "timeout"
		}
		x.Status, x.Header, x.Arrivals = 0, nil, nil
		x.Failure = &target.Failure{Class: class, Message: err.Error()}
		return x
	}
	// net/http sends a POST again only if nothing of it was written before.
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return fail("connection", err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fail("connection", err)
	}
	defer resp.Body.Close()
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	stream := media == "text/event-stream" || media == "application/x-ndjson" || media == "application/jsonl"
	// One byte more than there should be, so that the end is seen in one read.
	size := int64(512)
	if resp.ContentLength >= 0 {
		size = min(resp.ContentLength, MaxResponse) + 1
	}
	body = make([]byte, 0, size)
	for {
		n, err := resp.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if n > 0 && stream {
			x.Arrivals = append(x.Arrivals, target.Arrival{Bytes: len(body), After: time.Since(x.Sent)})
		}
		if len(body) > MaxResponse {
			return fail("too-large", fmt.Errorf("the answer has more than %d bytes", MaxResponse))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			x.Body = body
			return fail("truncated", err)
		}
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
	}
	if len(body) == 0 {
		return fail("truncated", fmt.Errorf("status %d with an empty answer", resp.StatusCode))
	}
	x.Received, x.Status, x.Body = time.Now().UTC(), resp.StatusCode, body
	for name, values := range resp.Header {
		if kept[name] && values[0] != "" {
			if x.Header == nil {
				x.Header = map[string]string{}
			}
			x.Header[name] = values[0]
		}
	}
	// A Retry-After can be a date, which is by the server's clock.
	if v := resp.Header.Get("Date"); v != "" && x.Header["Retry-After"] != "" {
		x.Header["Date"] = v
	}
	return x
}

// Get fetches a small JSON document into out; nil discards it.
func (c *Client) Get(ctx context.Context, address string, out any) error {
	x := c.Send(ctx, http.MethodGet, address, map[string]string{"Accept": "application/json"}, nil)
	if x.Failure != nil {
		// "ready" may have any body, or none.
		if out == nil && x.Failure.Class == "truncated" && strings.HasPrefix(x.Failure.Message, "status 200 ") {
			return nil
		}
		return fmt.Errorf("GET %s: %w", address, x.Failure)
	}
	if x.Status != http.StatusOK {
		return &StatusError{Address: address, Status: x.Status, Body: string(x.Body[:min(len(x.Body), 200)])}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(x.Body, out); err != nil {
		return fmt.Errorf("GET %s: %w", address, err)
	}
	return nil
}

// A StatusError is an answer to Get that is no success.
type StatusError struct {
	Address string
	Status  int
	Body    string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("GET %s: %d %s: %s", e.Address, e.Status, http.StatusText(e.Status), e.Body)
}

// Check returns why a response cannot be the model's own answer, whatever is
// in it: a status that is no success, or a store that answered.
func Check(r target.Response) error {
	if r.Status != http.StatusOK {
		after := ""
		if v := r.Header["Retry-After"]; v != "" {
			after = ", to be asked again after " + v
		}
		return target.Wrongf("http", "status %d%s: %.200q", r.Status, after, r.Body)
	}
	// "The presence of an Age header field implies that the response was not
	// generated or validated by the origin server for this request" (RFC 9111,
	// section 5.1).
	if v, ok := r.Header["Age"]; ok {
		return target.Wrongf("cached", "the answer was stored %s s ago", v)
	}
	for _, name := range []string{"X-Cache", "Cf-Cache-Status"} {
		if v := strings.ToUpper(r.Header[name]); strings.HasPrefix(v, "HIT") {
			return target.Wrongf("cached", "%s says %s", name, r.Header[name])
		}
	}
	return nil
}

// Canonical returns any JSON value in the canonical form (RFC 8785).
func Canonical(raw json.RawMessage) (json.RawMessage, error) {
	// In a list, because the canonicalizer takes no value that stands alone.
	out, err := attest.Marshal([]json.RawMessage{raw})
	if err != nil {
		return nil, err
	}
	return out[1 : len(out)-1], nil
}
