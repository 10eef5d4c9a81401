<?php
// Cadastra uma URL para receber os status das chamadas. PHP puro: não precisa da extensão cURL.
//
//   API_URL=https://api.example.com CLIENT_ID=... CLIENT_SECRET=... \
//   CALLBACK_URL=https://crm.example.com/callback php register.php
//
// CALLBACK_PIN é opcional: com ele, só vêm os status das chamadas daquele pin.

declare(strict_types=1);

function ambiente(string $nome): string
{
    $valor = getenv($nome);
    if ($valor === false || $valor === '') {
        desistir("defina a variável $nome");
    }
    return $valor;
}

function desistir(string $motivo): void
{
    fwrite(STDERR, "não cadastrada: $motivo\n");
    exit(1);
}

function chamar(string $caminho, array $campos): array
{
    $contexto = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => 'Content-Type: application/x-www-form-urlencoded',
        'content' => http_build_query($campos),
        'timeout' => 10,
        'follow_location' => 0, // as credenciais são para este servidor, e não para outro que ele indique
        'ignore_errors' => true, // as respostas de erro também são JSON, com codigo e msg
    ]]);
    $texto = @file_get_contents(rtrim(ambiente('API_URL'), '/') . $caminho, false, $contexto);
    if ($texto === false) {
        desistir('o servidor não respondeu');
    }
    $resposta = json_decode($texto, true);
    if (!is_array($resposta)) {
        desistir('a resposta não é JSON');
    }
    return $resposta;
}

$resposta = chamar('/request_token', [
    'client_id' => ambiente('CLIENT_ID'),
    'client_secret' => ambiente('CLIENT_SECRET'),
]);
if (!isset($resposta['access_token'])) {
    desistir($resposta['error_description'] ?? $resposta['msg'] ?? 'a resposta não traz um token');
}

// O token vale uma hora. Um programa que continua rodando pede outro quando a resposta for codigo 006.
$campos = ['access_token' => $resposta['access_token'], 'url' => ambiente('CALLBACK_URL')];
$pin = getenv('CALLBACK_PIN');
if ($pin !== false && $pin !== '') {
    $campos['pin'] = $pin;
}
$resposta = chamar('/voz/add-callback', $campos);
if (($resposta['codigo'] ?? '') !== '000') {
    desistir(($resposta['codigo'] ?? '???') . ' ' . ($resposta['msg'] ?? ''));
}

echo 'code:    ', $resposta['code'], "\n";
if (isset($resposta['segredo'])) {
    echo 'segredo: ', $resposta['segredo'], "\n";
    echo "Guarde o segredo para o seu receptor: ele não será mostrado de novo.\n";
} else {
    echo "Esta URL já estava cadastrada. O segredo foi mostrado naquela vez.\n";
}
