package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// A wire is one connection to a registry, spoken to with as little as can be:
// the client must not be what is measured.
type wire struct {
	host string
	conn *net.TCPConn
	r    *bufio.Reader
}

func dial(host string) (*wire, error) {
	c, err := net.Dial("tcp", host)
	if err != nil {
		return nil, err
	}
	return &wire{host, c.(*net.TCPConn), bufio.NewReaderSize(c, 64*kib)}, nil
}

func (w *wire) close() { w.conn.Close() }

// ask sends a request and reads the whole answer. headers are lines.
func (w *wire) ask(method, path string, body []byte, headers ...string) (*http.Response, []byte, error) {
	var b bytes.Buffer
	w.head(&b, method, path, int64(len(body)), headers)
	b.Write(body)
	if _, err := w.conn.Write(b.Bytes()); err != nil {
		return nil, nil, err
	}
	return w.answer(method)
}

func (w *wire) head(b *bytes.Buffer, method, path string, length int64, headers []string) {
	fmt.Fprintf(b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, w.host)
	if method != "GET" && method != "HEAD" {
		fmt.Fprintf(b, "Content-Length: %d\r\n", length)
	}
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("\r\n")
}

func (w *wire) answer(method string) (*http.Response, []byte, error) {
	resp, err := http.ReadResponse(w.r, &http.Request{Method: method})
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// expect is ask for an answer of one status.
func (w *wire) expect(status int, method, path string, body []byte, headers ...string) (*http.Response, error) {
	resp, answer, err := w.ask(method, path, body, headers...)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != status {
		return nil, fmt.Errorf("%s %s: %s %.300s", method, path, resp.Status, answer)
	}
	return resp, nil
}

// upload begins an upload and returns the path of its closing PUT.
func (w *wire) upload(repo, digest string) (string, error) {
	resp, err := w.expect(http.StatusAccepted, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
	if err != nil {
		return "", err
	}
	loc := resp.Header.Get("Location")
	if _, rest, ok := strings.Cut(loc, "://"); ok {
		loc = rest[strings.Index(rest, "/"):]
	}
	sep := "?"
	if strings.Contains(loc, "?") {
		sep = "&"
	}
	return loc + sep + "digest=" + digest, nil
}

// push sends a payload by one POST and one PUT and returns when 201 has come:
// how long the PUT took.
func (w *wire) push(repo string, p *payload) (time.Duration, error) {
	path, err := w.upload(repo, p.digest)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	var b bytes.Buffer
	w.head(&b, "PUT", path, p.size, []string{"Content-Type: application/octet-stream"})
	if _, err := w.conn.Write(b.Bytes()); err != nil {
		return 0, err
	}
	if err := p.send(w.conn); err != nil {
		return 0, fmt.Errorf("sending: %w", err)
	}
	resp, answer, err := w.answer("PUT")
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusCreated {
		return 0, fmt.Errorf("PUT %s: %s %.300s", path, resp.Status, answer)
	}
	return time.Since(start), nil
}

// blob pushes small content and returns its digest.
func (w *wire) blob(repo string, data []byte) (string, error) {
	d := digestOf(data)
	path, err := w.upload(repo, d)
	if err == nil {
		_, err = w.expect(http.StatusCreated, "PUT", path, data, "Content-Type: application/octet-stream")
	}
	return d, err
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// manifest pushes a manifest.
func (w *wire) manifest(repo, reference string, body []byte) error {
	_, err := w.expect(http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/"+reference, body, "Content-Type: "+manifestType)
	return err
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// A thing is a digest with its size.
type thing struct {
	digest string
	size   int
}

// manifestOf writes a manifest of one layer.
func manifestOf(config, layer thing, subject *thing, note string) []byte {
	about := ""
	if subject != nil {
		about = fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":%d}`, manifestType, subject.digest, subject.size)
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.example.model",`+
		`"config":{"mediaType":"application/vnd.example.config","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/octet-stream","digest":%q,"size":%d}]%s,"annotations":{"note":%q}}`,
		manifestType, config.digest, config.size, layer.digest, layer.size, about, note)
}
