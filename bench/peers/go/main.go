// The peers in Go. `peers VARIANT FILE COUNT` speaks as `bench/peers/child.py` says.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/feature/dynamodb/attributevalue"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	goccy "github.com/goccy/go-json"
)

// images holds the keys, the new and the old image of a change as Go values; nil for one that isn't there.
type images [3]map[string]any

var variants = map[string]func([]byte) (images, error){
	"aws-sdk-go-v2/feature/dynamodb/attributevalue": withSDK,
	"goccy/go-json": withGoccy,
}

// withSDK is what the SDK itself offers for JSON.
func withSDK(payload []byte) (decoded images, err error) {
	var record struct {
		DynamoDB struct {
			Keys, NewImage, OldImage json.RawMessage
		} `json:"dynamodb"`
	}
	if err = json.Unmarshal(payload, &record); err != nil {
		return
	}
	change := &record.DynamoDB
	for i, image := range []json.RawMessage{change.Keys, change.NewImage, change.OldImage} {
		if image == nil {
			continue
		}
		typed, err := attributevalue.UnmarshalMapJSON(image)
		if err != nil {
			return decoded, err
		}
		if err := attributevalue.UnmarshalMap(typed, &decoded[i]); err != nil {
			return decoded, err
		}
	}
	return
}

// value is an attribute value as JSON has it: one field is set.
type value struct {
	S, N *string
	B    []byte
	BOOL *bool
	NULL *bool
	M    *map[string]value
	L    *[]value
	SS   []string
	NS   []string
	BS   [][]byte
}

// withGoccy is the fastest that was found: another JSON parser, and the typed value by hand.
func withGoccy(payload []byte) (decoded images, err error) {
	var record struct {
		DynamoDB struct {
			Keys, NewImage, OldImage map[string]value
		} `json:"dynamodb"`
	}
	if err = goccy.Unmarshal(payload, &record); err != nil {
		return
	}
	change := &record.DynamoDB
	for i, image := range []map[string]value{change.Keys, change.NewImage, change.OldImage} {
		if image == nil {
			continue
		}
		if err = attributevalue.UnmarshalMap(typedMap(image), &decoded[i]); err != nil {
			return
		}
	}
	return
}

func typedMap(members map[string]value) map[string]types.AttributeValue {
	typed := make(map[string]types.AttributeValue, len(members))
	for name, member := range members {
		typed[name] = member.typed()
	}
	return typed
}

func (v *value) typed() types.AttributeValue {
	switch {
	case v.S != nil:
		return &types.AttributeValueMemberS{Value: *v.S}
	case v.N != nil:
		return &types.AttributeValueMemberN{Value: *v.N}
	case v.BOOL != nil:
		return &types.AttributeValueMemberBOOL{Value: *v.BOOL}
	case v.M != nil:
		return &types.AttributeValueMemberM{Value: typedMap(*v.M)}
	case v.L != nil:
		list := make([]types.AttributeValue, len(*v.L))
		for i := range *v.L {
			list[i] = (*v.L)[i].typed()
		}
		return &types.AttributeValueMemberL{Value: list}
	case v.SS != nil:
		return &types.AttributeValueMemberSS{Value: v.SS}
	case v.NS != nil:
		return &types.AttributeValueMemberNS{Value: v.NS}
	case v.BS != nil:
		return &types.AttributeValueMemberBS{Value: v.BS}
	case v.NULL != nil:
		return &types.AttributeValueMemberNULL{Value: true}
	default:
		return &types.AttributeValueMemberB{Value: v.B}
	}
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: peers VARIANT FILE COUNT")
	}
	decode, ok := variants[os.Args[1]]
	if !ok {
		log.Fatalf("no peer is called %s", os.Args[1])
	}
	payloads, err := read(os.Args[2], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	count, stock := 0, 0.0
	for _, payload := range payloads {
		decoded, err := decode(payload)
		if err != nil {
			log.Fatal(err)
		}
		for _, image := range decoded[1:] {
			if image != nil {
				count++
				stock += image["Stock"].(float64)
			}
		}
	}
	fmt.Println(len(payloads), count, int(stock))

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		for _, payload := range payloads {
			if _, err := decode(payload); err != nil {
				log.Fatal(err)
			}
		}
		fmt.Println("done")
	}
}

// read gives the payloads of a file, each behind its length in four bytes.
func read(file, count string) ([][]byte, error) {
	all, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	wanted, err := strconv.Atoi(count)
	if err != nil {
		return nil, err
	}
	payloads := make([][]byte, wanted)
	for i := range payloads {
		end := 4 + int(binary.LittleEndian.Uint32(all))
		payloads[i], all = all[4:end], all[end:]
	}
	return payloads, nil
}
