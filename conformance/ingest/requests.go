package ingest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// maxLine is the longest line of requests that is read.
const maxLine = 64 << 20

// Requests reads lines of JSON, each of them the body of a request in one of
// these forms:
//
//	{"inputs": [{"name": …, "datatype": …, "shape": […], "data": […]}]}   Open Inference Protocol
//	{"inputs": {…}} or {"instances": […]}                                TensorFlow Serving, KServe v1, MLflow
//	{"dataframe_split": {…}} or {"dataframe_records": […]}               MLflow
//
// A line that asks a language model (messages, prompt, a batch of OpenAI's) is
// noted and left out: a suite of tensors has no place for it.
func Requests(raw []byte, opt Options) (*Result, error) {
	r := &Result{}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, maxLine)
	n := 0
	seen := map[string]bool{}
	for lines.Scan() {
		n++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		one := opt
		one.Prefix = fmt.Sprintf("%s%06d", opt.Prefix, n)
		cases, err := request(r, lines.Bytes(), one, fmt.Sprintf("line %d", n))
		if err != nil {
			r.note("line %d is left out: %v", n, err)
			continue
		}
		for _, c := range cases {
			if seen[c.ID] {
				r.note("line %d: case %s is left out: its id was used before", n, c.ID)
				continue
			}
			seen[c.ID] = true
			r.Cases = append(r.Cases, c)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	if len(r.Cases) == 0 {
		return nil, fmt.Errorf("no line is a request that can be read: %s", firstNotes(r.Notes))
	}
	return r, nil
}

func firstNotes(notes []string) string {
	if len(notes) == 0 {
		return "there is none"
	}
	if len(notes) > 3 {
		return strings.Join(notes[:3], "; ") + fmt.Sprintf("; and %d more", len(notes)-3)
	}
	return strings.Join(notes, "; ")
}

// MLflow reads an input example as MLflow stores it beside a model
// (input_example.json): a data frame in the "split" orientation, or inputs or
// instances as its scoring server takes them.
func MLflow(raw []byte, opt Options) (*Result, error) {
	r := &Result{}
	cases, err := request(r, raw, opt, "the example")
	if err != nil {
		return nil, err
	}
	r.Cases = cases
	if len(cases) == 0 {
		return nil, fmt.Errorf("it has no case that can be read: %s", firstNotes(r.Notes))
	}
	return r, nil
}

// decode reads JSON with its numbers as they are written, and nothing after it.
func decode(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// request reads one request, which can have several rows: a case each.
func request(r *Result, raw []byte, opt Options, where string) ([]Case, error) {
	var v any
	if err := decode(raw, &v); err != nil {
		return nil, err
	}
	object, ok := v.(map[string]any)
	if !ok {
		if list, ok := v.([]any); ok { // MLflow: the bare list of a tensor, or of records
			return instances(r, list, opt, where)
		}
		return nil, errors.New("it is no object and no list")
	}
	for _, key := range []string{"messages", "prompt", "custom_id", "input"} {
		if _, ok := object[key]; ok {
			return nil, fmt.Errorf("it asks a language model (%q), and a suite of tensors has no place for that", key)
		}
	}
	known := []string{}
	read := func(key string) (any, bool) {
		v, ok := object[key]
		if ok {
			known = append(known, key)
		}
		return v, ok
	}
	id := ""
	if v, ok := read("id"); ok {
		if s, ok := v.(string); ok && s != "" {
			id = caseID("", s)
		}
	}
	var cases []Case
	var err error
	if frame, ok := read("dataframe_split"); ok {
		cases, err = split(r, frame, opt, where)
	} else if records, ok := read("dataframe_records"); ok {
		list, _ := records.([]any)
		cases, err = instances(r, list, opt, where)
	} else if list, ok := read("instances"); ok {
		rows, _ := list.([]any)
		cases, err = instances(r, rows, opt, where)
	} else if inputs, ok := read("inputs"); ok {
		switch inputs := inputs.(type) {
		case map[string]any:
			cases, err = columns(r, inputs, opt, where)
		case []any:
			if isOIP(inputs) {
				cases, err = oip(inputs, opt)
				break
			}
			cases, err = instances(r, inputs, opt, where)
		default:
			err = errors.New("its inputs are no object and no list")
		}
	} else if _, ok := object["columns"]; ok {
		known = append(known, "columns", "data", "index")
		cases, err = split(r, object, opt, where)
	} else {
		err = fmt.Errorf("it has none of inputs, instances, dataframe_split, dataframe_records and columns; it has %s", strings.Join(sortedKeys(object), ", "))
	}
	if err != nil {
		return nil, err
	}
	for _, key := range sortedKeys(object) {
		if !slices.Contains(known, key) {
			r.note("%s: %q is left out: it is no part of an input", where, key)
		}
	}
	if id != "" {
		for i := range cases {
			cases[i].ID = id
			if len(cases) > 1 {
				cases[i].ID += fmt.Sprintf("-%d", i)
			}
		}
	}
	return cases, nil
}

func isOIP(list []any) bool {
	for _, v := range list {
		m, ok := v.(map[string]any)
		if !ok || m["name"] == nil || m["datatype"] == nil {
			return false
		}
	}
	return len(list) > 0
}

// oip reads the tensors of an Open Inference Protocol request: one case.
func oip(list []any, opt Options) ([]Case, error) {
	c := Case{ID: opt.Prefix, Inputs: map[string]Tensor{}}
	for _, v := range list {
		m := v.(map[string]any)
		name, _ := m["name"].(string)
		datatype, _ := m["datatype"].(string)
		shape, _ := m["shape"].([]any)
		t := Tensor{Datatype: datatype}
		if _, ok := types[datatype]; !ok {
			return nil, fmt.Errorf("input %s: type %s cannot be read", name, datatype)
		}
		for _, d := range shape {
			number, _ := d.(json.Number)
			n, err := strconv.ParseInt(string(number), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("input %s: its shape is none", name)
			}
			t.Shape = append(t.Shape, n)
		}
		data, _, err := flat(m["data"], nil)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", name, err)
		}
		if n, err := elements(t.Shape); err != nil || n != len(data) {
			return nil, fmt.Errorf("input %s has %d numbers for shape %v", name, len(data), t.Shape)
		}
		if _, ok := c.Inputs[name]; ok {
			return nil, fmt.Errorf("input %s is there twice", name)
		}
		t.Data = data
		c.Inputs[name] = t
	}
	return []Case{c}, nil
}

// flat turns nested lists of numbers into numbers and a shape.
func flat(v any, to []json.Number) (data []json.Number, shape []int64, err error) {
	switch v := v.(type) {
	case json.Number:
		return append(to, v), nil, nil
	case bool:
		if v {
			return append(to, "1"), nil, nil
		}
		return append(to, "0"), nil, nil
	case []any:
		shape = []int64{int64(len(v))}
		var inner []int64
		for i, one := range v {
			var s []int64
			if to, s, err = flat(one, to); err != nil {
				return nil, nil, err
			}
			if i > 0 && !slices.Equal(s, inner) {
				return nil, nil, errors.New("its lists are not of one length")
			}
			inner = s
		}
		return to, append(shape, inner...), nil
	case nil:
		return nil, nil, errors.New("it has a null in it")
	case string:
		return nil, nil, fmt.Errorf("%.40q is text", v)
	}
	return nil, nil, errors.New("it is no number and no list of numbers")
}

func (o Options) datatype() string {
	if o.Datatype == "" {
		return "FP32"
	}
	return o.Datatype
}

// row makes a tensor of one row: its shape begins with the batch of one.
func (o Options) row(v any) (Tensor, error) {
	data, shape, err := flat(v, nil)
	if err != nil {
		return Tensor{}, err
	}
	if _, ok := types[o.datatype()]; !ok {
		return Tensor{}, fmt.Errorf("type %s is unknown", o.datatype())
	}
	if len(shape) == 0 {
		shape = []int64{1}
	}
	return Tensor{Datatype: o.datatype(), Shape: append([]int64{1}, shape...), Data: data}, nil
}

// inputName is the name of an input that the format does not name.
func (o Options) inputName() string {
	if o.Join != "" {
		return o.Join
	}
	if len(o.Inputs) == 1 {
		return o.Inputs[0]
	}
	return "input"
}

// instances reads rows: each a list or a number, or an object of named values.
func instances(r *Result, list []any, opt Options, where string) (cases []Case, err error) {
	if len(list) == 0 {
		return nil, errors.New("it has no rows")
	}
	unnamed := 0
	for i, v := range list {
		c := Case{ID: rowID(opt.Prefix, i, len(list)), Inputs: map[string]Tensor{}, Outputs: map[string]Tensor{}}
		if object, ok := v.(map[string]any); ok {
			err = c.named(sortedKeys(object), func(name string) any { return object[name] }, opt)
		} else {
			unnamed++
			var t Tensor
			if t, err = opt.row(v); err == nil {
				c.Inputs[opt.inputName()] = t
			}
		}
		if err != nil {
			r.note("%s, row %d is left out: %v", where, i, err)
			continue
		}
		cases = append(cases, c)
	}
	if unnamed > 0 && opt.Join == "" && len(opt.Inputs) != 1 {
		r.note("%s: its rows name no input: it is called %q here", where, opt.inputName())
	}
	if opt.Datatype == "" {
		r.note("%s: it names no type: its numbers are taken as FP32", where)
	}
	return cases, nil
}

// rowID is the id of a row: the prefix alone if there is one row and a prefix.
func rowID(prefix string, i, n int) string {
	switch {
	case prefix == "":
		return fmt.Sprintf("%06d", i)
	case n == 1:
		return prefix
	}
	return fmt.Sprintf("%s-%06d", prefix, i)
}

// named fills a case from named values, in the order of names.
func (c *Case) named(names []string, value func(string) any, opt Options) error {
	var joined []json.Number
	for _, name := range names {
		v := value(name)
		if name == opt.Label && name != "" {
			switch v := v.(type) {
			case string:
				c.Label = v
			case json.Number:
				c.Label = string(v)
			case bool:
				c.Label = strconv.FormatBool(v)
			default:
				return fmt.Errorf("label %s is no text and no number", name)
			}
			continue
		}
		output := slices.Contains(opt.Outputs, name)
		if !output && len(opt.Inputs) > 0 && !slices.Contains(opt.Inputs, name) && opt.Join == "" {
			return fmt.Errorf("%s was not named as an input", name)
		}
		t, err := opt.row(v)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		switch {
		case output:
			c.Outputs[name] = t
		case opt.Join != "":
			joined = append(joined, t.Data...)
		default:
			c.Inputs[name] = t
		}
	}
	if opt.Join != "" {
		if len(joined) == 0 {
			return errors.New("it has no inputs")
		}
		c.Inputs[opt.Join] = Tensor{Datatype: opt.datatype(), Shape: []int64{1, int64(len(joined))}, Data: joined}
	}
	if len(c.Inputs) == 0 {
		return errors.New("it has no inputs")
	}
	return nil
}

// split reads a data frame in pandas' "split" orientation.
func split(r *Result, v any, opt Options, where string) (cases []Case, err error) {
	frame, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("its data frame is no object")
	}
	rows, ok := frame["data"].([]any)
	if !ok || len(rows) == 0 {
		return nil, errors.New("its data frame has no data")
	}
	var names []string
	seen := map[string]bool{}
	list, _ := frame["columns"].([]any)
	for i, c := range list {
		name := fmt.Sprint(c)
		if seen[name] {
			return nil, fmt.Errorf("column %d: %q is there twice", i, name)
		}
		seen[name] = true
		names = append(names, name)
	}
	for i, row := range rows {
		values, ok := row.([]any)
		c := Case{ID: rowID(opt.Prefix, i, len(rows)), Inputs: map[string]Tensor{}, Outputs: map[string]Tensor{}}
		switch {
		case !ok:
			err = errors.New("it is no list")
		case len(names) == 0:
			var t Tensor
			if t, err = opt.row(row); err == nil {
				c.Inputs[opt.inputName()] = t
			}
		case len(values) != len(names):
			err = fmt.Errorf("it has %d values for %d columns", len(values), len(names))
		default:
			err = c.named(names, func(name string) any { return values[slices.Index(names, name)] }, opt)
		}
		if err != nil {
			r.note("%s, row %d is left out: %v", where, i, err)
			continue
		}
		cases = append(cases, c)
	}
	if opt.Datatype == "" {
		r.note("%s: it names no type: its numbers are taken as FP32", where)
	}
	return cases, nil
}

// columns reads inputs by name, each with all its rows.
func columns(r *Result, inputs map[string]any, opt Options, where string) ([]Case, error) {
	n := -1
	for _, name := range sortedKeys(inputs) {
		list, ok := inputs[name].([]any)
		if !ok {
			return nil, fmt.Errorf("input %s is no list of rows", name)
		}
		if n >= 0 && n != len(list) {
			return nil, fmt.Errorf("input %s has %d rows and others have %d", name, len(list), n)
		}
		n = len(list)
	}
	if n <= 0 {
		return nil, errors.New("its inputs have no rows")
	}
	var list []any
	for i := range n {
		row := map[string]any{}
		for name, v := range inputs {
			row[name] = v.([]any)[i]
		}
		list = append(list, row)
	}
	return instances(r, list, opt, where)
}
