#!/bin/sh
# Cadastra uma URL para receber os status das chamadas, só com curl e sed.
#
#   API_URL=https://api.example.com CLIENT_ID=... CLIENT_SECRET=... \
#   CALLBACK_URL=https://crm.example.com/callback sh register.sh
#
# CALLBACK_PIN é opcional: com ele, só vêm os status das chamadas daquele pin.

set -eu

: "${API_URL:?}" "${CLIENT_ID:?}" "${CLIENT_SECRET:?}" "${CALLBACK_URL:?}"

desistir() {
    echo "não cadastrada: $1" >&2
    exit 1
}

# Os campos vão para o curl pela entrada padrão: na linha de comando, qualquer usuário da máquina os leria com "ps".
campo() {
    valor=$(printf '%s' "$2" | sed 's/[\\"]/\\&/g')
    printf 'data-urlencode = "%s=%s"\n' "$1" "$valor"
}

chamar() {
    curl --silent --show-error --max-time 10 --config - "${API_URL%/}$1"
}

# A resposta traz uma chave por linha, o que permite recortar um valor sem um leitor de JSON.
valor_de() {
    printf '%s\n' "$2" | sed -n 's/^ *"'"$1"'": *"\(.*\)",\{0,1\}$/\1/p'
}

resposta=$({
    campo client_id "$CLIENT_ID"
    campo client_secret "$CLIENT_SECRET"
} | chamar /request_token) || desistir "o servidor não respondeu"
token=$(valor_de access_token "$resposta")
[ -n "$token" ] || desistir "$(valor_de codigo "$resposta") $(valor_de msg "$resposta")"

# O token vale uma hora. Um programa que continua rodando pede outro quando a resposta for codigo 006.
resposta=$({
    campo access_token "$token"
    campo url "$CALLBACK_URL"
    if [ -n "${CALLBACK_PIN:-}" ]; then campo pin "$CALLBACK_PIN"; fi
} | chamar /voz/add-callback) || desistir "o servidor não respondeu"
codigo=$(valor_de codigo "$resposta")
[ "$codigo" = 000 ] || desistir "$codigo $(valor_de msg "$resposta")"

echo "code:    $(valor_de code "$resposta")"
segredo=$(valor_de segredo "$resposta")
if [ -n "$segredo" ]; then
    echo "segredo: $segredo"
    echo "Guarde o segredo para o seu receptor: ele não será mostrado de novo."
else
    echo "Esta URL já estava cadastrada. O segredo foi mostrado naquela vez."
fi
