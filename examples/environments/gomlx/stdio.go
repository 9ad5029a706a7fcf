package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
)

// serveLines answers questions of one line with answers of one line, as a
// device without a network does: inference requests of the protocol, and
// {"describe":"MODEL"} for the metadata.
func serveLines(s *server, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var q struct {
			Describe string `json:"describe"`
			Model    string `json:"model_name"`
			ID       string `json:"id"`
		}
		err := json.Unmarshal(lines.Bytes(), &q)
		method, path, body := "POST", "/v2/models/"+q.Model+"/infer", lines.Bytes()
		if q.Describe != "" {
			method, path, body = "GET", "/v2/models/"+q.Describe, nil
		}
		w := httptest.NewRecorder()
		if err == nil {
			// The same handler, so that a line is answered as a request is.
			r, newErr := http.NewRequest(method, path, bytes.NewReader(body))
			if newErr != nil {
				return newErr
			}
			s.ServeHTTP(w, r)
		} else {
			refuse(w, 400, "the line is no JSON: %v", err)
		}
		if _, err := fmt.Fprintf(out, "%s\n", bytes.ReplaceAll(w.Body.Bytes(), []byte("\n"), []byte(" "))); err != nil {
			return err
		}
	}
	return lines.Err()
}
